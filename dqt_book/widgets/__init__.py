"""The data that widgets of the pages need: `live_demo` and `controller_explorer`, computed by the package."""
