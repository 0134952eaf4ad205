"""LeNet-5 on grey digits: trained, lowered, recorded."""
