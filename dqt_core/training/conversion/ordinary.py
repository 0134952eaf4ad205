"""What `convert` asks of a float model before it reads it: one that a copy and a trace of it reproduce."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

# nothing of torch's own that is derived from these is them: quantized, fake-quantized or lazy layers
KNOWN = (
    nn.Conv2d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.ReLU6,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)

# modules that stand for another one, and where that is
_STAND_INS: tuple[tuple[tuple[type, ...], str, str], ...] = (
    ((torch.jit.ScriptModule,), "scripted or traced", "the Python module it was made from"),
    ((torch._dynamo.OptimizedModule,), "compiled", "the module before torch.compile, its `_orig_mod`"),
    ((nn.DataParallel, nn.parallel.DistributedDataParallel), "wrapped for several devices", "its `module`"),
)
# what makes a weight out of other tensors in a hook, and the call that makes it a parameter again
_MAKERS: tuple[tuple[type, str], ...] = (
    (WeightNorm, "torch.nn.utils.remove_weight_norm(module)"),
    (SpectralNorm, "torch.nn.utils.remove_spectral_norm(module)"),
    (BasePruningMethod, "torch.nn.utils.prune.remove(module, '{}')"),
)


def require_ordinary(net: nn.Module) -> None:
    """Refuse a model that a copy of its modules and a trace of its forward do not reproduce.

    Parameters
    ----------
    net : Module

    Raises
    ------
    ValueError
        If a module stands for another one, computes its weights, or has forward hooks; or if a tensor has no
        numbers, is not dense, or holds NaN or infinity.

    Examples
    --------
    >>> require_ordinary(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    Traceback (most recent call last):
    ValueError: `weight` of the model is computed from other tensors; training could not move it: call \
torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')
    """
    _require_module(net)
    for name, module in net.named_modules():
        where = f"`{name}`" if name else "the model"
        for kinds, what, original in _STAND_INS:
            if isinstance(module, kinds):
                raise ValueError(f"{where} is {what}; give convert {original}")
        _require_own_weights(where, module)
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"{where} has a forward hook, which convert would lose; remove it (handle.remove()) or put "
                "what it does into forward"
            )
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        _require_numbers(name, tensor)


def _require_module(net: object) -> None:
    if isinstance(net, nn.Module):
        return
    way_out = ""
    if isinstance(net, dict):
        way_out = "; build the model, give it these by load_state_dict, and give the model"
    elif isinstance(net, type) and issubclass(net, nn.Module):
        way_out = f"; give an instance of it, {net.__name__}(...)"
    raise ValueError(f"the model is a {type(net).__name__}, expected an nn.Module{way_out}")


def _require_own_weights(where: str, module: nn.Module) -> None:
    for name in ("weight", "bias"):
        tensor = getattr(module, name, None)
        if isinstance(module, KNOWN) and isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
            way_out = f"module.{name} = nn.Parameter(module.{name}.detach())"
            if parametrize.is_parametrized(module, name):
                way_out = f"torch.nn.utils.parametrize.remove_parametrizations(module, '{name}')"
            for hook in module._forward_pre_hooks.values():
                way_out = next((call for kind, call in _MAKERS if isinstance(hook, kind)), way_out)
            raise ValueError(
                f"`{name}` of {where} is computed from other tensors; training could not move it: "
                f"call {way_out.format(name)}"
            )


def _require_numbers(name: str, tensor: Tensor) -> None:
    if tensor.is_meta or nn.parameter.is_lazy(tensor):
        raise ValueError(f"`{name}` has no numbers yet; load the model's weights, or run it once, first")
    if tensor.layout != torch.strided or type(tensor.data) is not Tensor or tensor.is_complex():
        kind = f"{type(tensor.data).__name__} of {tensor.dtype}, {tensor.layout}"
        raise ValueError(f"`{name}` is a {kind}, expected an ordinary dense tensor of real numbers")
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ValueError(
            f"`{name}` holds NaN or infinite numbers; its training diverged: go back to an earlier checkpoint"
        )


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes what its kind does, and not what a class derived from it makes of it.

    Examples
    --------
    >>> class Louder(nn.ReLU):
    ...     def forward(self, x):
    ...         return 2 * super().forward(x)
    >>> is_plain(nn.ReLU(), nn.ReLU), is_plain(Louder(), nn.ReLU)
    (True, False)
    """
    own = {name for cls in type(module).__mro__[: type(module).__mro__.index(kind)] for name in vars(cls)}
    return not (own | set(vars(module))) & {"forward", "_conv_forward", "__call__", "_call_impl"}
