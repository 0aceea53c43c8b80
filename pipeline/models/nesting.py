"""How modules lie within each other: torch goes through them by recursion, which a circle never ends."""

from torch import nn

from pipeline.messages.errors import UserError

DEEPEST = 200  # modules within each other


def require_tree(module: nn.Module) -> None:
    """Raises UserError for a module that is within itself, or so deeply nested that torch cannot go through it."""
    above: list[nn.Module] = []  # from the module down to where the search stands
    left, seen = [(0, "", module)], set()
    while left:
        depth, name, each = left.pop()
        del above[depth:]
        if any(each is other for other in above):
            raise UserError(f"{type(module).__name__} holds a module that is within itself, at {name}; take it out")
        if depth == DEEPEST:
            raise UserError(f"{type(module).__name__} has modules within modules, {DEEPEST} deep: at most so many work")
        above.append(each)
        if id(each) in seen:  # it has several names
            continue
        seen.add(id(each))
        left += [(depth + 1, f"{name}.{key}".lstrip("."), child) for key, child in each.named_children()]
