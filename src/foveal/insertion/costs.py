"""The cost of an insertion per site, estimated on throw-away blocks; the network is unchanged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.insertion.build import Block, build, resolve
from foveal.insertion.example import preserve_state
from foveal.insertion.locate import find_sites, require_usable
from foveal.insertion.own import from_file
from foveal.measure import count_macs, count_parameters
from foveal.terminal import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """One site: its feature map and what the block there would add, for one image."""

    name: str
    stage: int | None
    shape: tuple[int, ...]
    parameters: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True, repr=False)
class Plan:
    """Rows and totals of an insertion; ``print(plan)`` is a table, and so is its value in a notebook.

    Attributes:
        network: class name of the network.
        block: name of the block.
        at: where, as given to `insert`.
        rows: one a site, in order of execution.
        network_parameters: parameters the network has already.
        network_macs: multiply-accumulates of the network for one image, or None where the example is not one
            tensor.
    """

    network: str
    block: str
    at: str
    rows: tuple[Row, ...]
    network_parameters: int
    network_macs: int | None

    @property
    def parameters(self) -> int:
        """Parameters added, all sites together."""
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates added for one image, all sites together."""
        return sum(row.macs for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """Bytes added blocks keep for the backward pass of one image, all sites together."""
        return sum(row.activation_bytes for row in self.rows)

    def _table(self) -> tuple[list[str], list[tuple[str, ...]]]:
        """Title cells and lines; the last three lines are totals."""
        head = ["site", "stage", "shape", "parameters", "MACs", "activations"]
        body = [
            (
                row.name,
                "-" if row.stage is None else str(row.stage),
                " x ".join(map(str, row.shape)),
                f"{row.parameters:,}",
                _scaled(row.macs),
                _scaled(row.activation_bytes, "B"),
            )
            for row in self.rows
        ]
        macs, memory = _scaled(self.macs), _scaled(self.activation_bytes, "B")
        total = ("total", "", "", f"{self.parameters:,}", macs, memory)
        own = ("network", "", "", f"{self.network_parameters:,}", "-", "")
        more = ("added", "", "", _share(self.parameters, self.network_parameters), "-", "")
        if self.network_macs is not None:
            own = (*own[:4], _scaled(self.network_macs), "")
            more = (*more[:4], _share(self.macs, self.network_macs), "")
        return head, [*body, total, own, more]

    @property
    def _title(self) -> str:
        return f"{self.block} in {self.network} at {self.at}: {self._sites}, for one image"

    def __str__(self) -> str:
        head, lines = self._table()
        widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))

        def spelled(line: Sequence[str]) -> str:
            left = [cell.ljust(width) for cell, width in zip(line[:3], widths[:3], strict=True)]
            right = [cell.rjust(width) for cell, width in zip(line[3:], widths[3:], strict=True)]
            return "  ".join([*left, *right]).rstrip()

        body, totals = map(spelled, lines[:-3]), map(spelled, lines[-3:])
        return "\n".join([self._title, spelled(head), rule, *body, rule, *totals])

    @property
    def _sites(self) -> str:
        return f"{len(self.rows)} site{'s' * (len(self.rows) != 1)}"

    def __repr__(self) -> str:
        added = f"{self.parameters:,} parameters, {_scaled(self.macs)} MACs"
        return f"<Plan {self.block} in {self.network} at {self.at}: {self._sites}, {added} added>"

    def _repr_html_(self) -> str:
        head, lines = self._table()

        def row(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(row(line, "td") for line in lines)
        return f"<table><caption>{escape(self._title)}</caption>{row(head, 'th')}{body}</table>"

    def plot(self) -> "Figure":
        """Bars of what each site adds: parameters, multiply-accumulates, bytes kept; a notebook shows it.

        Example:
            >>> import foveal
            >>> plan = foveal.plan(foveal.create_model("cifar_resnet8", num_classes=10), "se", reduction=4)
            >>> [axes.get_title() for axes in plan.plot().axes]
            ['parameters', 'MACs', 'activations (bytes)']
        """
        from foveal.figure import new_figure

        figure = new_figure(9, 1.4 + 0.28 * len(self.rows))
        places = range(len(self.rows))
        for axes, (title, values) in zip(
            figure.subplots(1, 3, sharey=True),
            {
                "parameters": [row.parameters for row in self.rows],
                "MACs": [row.macs for row in self.rows],
                "activations (bytes)": [row.activation_bytes for row in self.rows],
            }.items(),
            strict=True,
        ):
            axes.barh(places, values)
            axes.set_title(title, fontsize="medium")
            axes.set_yticks(places, [row.name for row in self.rows])
            axes.locator_params(axis="x", nbins=3)
            axes.xaxis.set_major_formatter(lambda value, _: _scaled(round(value)))
            axes.tick_params(labelsize="small")
        figure.axes[0].invert_yaxis()
        figure.suptitle(self._title)
        return figure


def plan(
    net: nn.Module,
    block: Block,
    *,
    at: str = "residual",
    stages: Iterable[int] | None = None,
    start: str = "identity",
    example: Any = None,
    **options: Any,
) -> Plan:
    """Estimate what ``insert`` with the same arguments would add; the network is unchanged.

    Figures are for one image. A block is built and run on the CPU for every distinct shape of feature map; random
    state is put back. Multiply-accumulates are those of `foveal.measure.count_macs`: convolutions and matrix
    products by ``torch.utils.flop_counter``, products inside this library's own operators, and one for each value
    of every elementwise product; additions, pooling, normalisation and activations are not counted. Activation
    bytes are what the block keeps for the backward pass in training, its input included, each storage once,
    parameters left out; measured with two images and halved.

    Args:
        net: the network, left unchanged.
        block, at, stages, start, example, **options: as in `insert`.

    Returns:
        A `Plan`; print it.

    Raises:
        ValueError: as `insert`.

    Example:
        >>> import foveal
        >>> net = foveal.create_model("cifar_resnet8", num_classes=10)
        >>> plan = foveal.plan(net, "se", stages=(3,), reduction=4)
        >>> plan.rows[0].name, plan.rows[0].shape, plan.parameters
        ('layer3.0.bn2', (64, 8, 8), 2128)
        >>> print(plan)  # doctest: +ELLIPSIS
        se in CifarResNet at residual: 1 site, for one image
        site          stage  shape       parameters     MACs  activations
        ...
    """
    net = getattr(net, "_orig_mod", net)
    name, make, fixed = resolve(from_file(block))
    options = {**fixed, **options}
    listed, trace = find_sites(net, at, stages=stages, example=example)
    dtypes = {call.name: call.dtype for call in trace.calls}
    costs: dict[Any, tuple[int, int, int]] = {}
    rows = []
    for site in require_usable(listed, net, at):
        key = site.shape, dtypes[site.name]
        if key not in costs:
            with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                module = build(name, make, site.channels, len(site.shape) - 1, start, options)
                costs[key] = _cost(module.to(dtypes[site.name]), site.shape, dtypes[site.name])
        rows.append(Row(site.name, site.stage, site.shape, *costs[key]))
    args, kwargs = trace.example
    network_macs = None
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        with preserve_state(net):
            network_macs = count_macs(net, args[0]) // len(args[0])
    return Plan(type(net).__name__, name, at, tuple(rows), count_parameters(net), network_macs)


def _cost(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype | None) -> tuple[int, int, int]:
    """Parameters, multiply-accumulates and activation bytes for one image."""
    images = 2  # batch normalisation of a 1 x 1 map refuses to train on one
    x = torch.randn(images, *shape, dtype=dtype)
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors stay alive, so that no storage's address is used twice

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = tensor
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = module.train()(x.requires_grad_())
    activation_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) // images
    del result
    return count_parameters(module), count_macs(module, x.detach()) // images, activation_bytes


def _scaled(value: int, unit: str = "") -> str:
    for prefix, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.2f} {prefix}{unit}"
    return f"{value} {unit}".rstrip()


def _share(part: int, whole: int) -> str:
    return f"+{100 * part / whole:.2f} %" if whole else "-"
