"""Freeze a network's backbone for the first epochs."""

from collections.abc import Callable

from torch import nn

from foveal.insertion import freeze_backbone
from foveal.insertion.param_groups import backbone


class Freezer:
    """A network's backbone, frozen for the first epochs: only inserted blocks and the classifier (or head) train.

    Its weights need no gradient meanwhile, so that backward skips them, and its batch statistics are used and kept.

    Example:
        >>> import foveal
        >>> net = foveal.insert(foveal.create_model("cifar_resnet8"), "se", reduction=4)
        >>> freezer = Freezer(net, epochs=1)
        >>> for epoch in (0, 1):
        ...     changed = freezer.start_epoch(epoch)
        ...     print(changed, net.conv1.weight.requires_grad, net.bn1.training, net.fc.weight.requires_grad)
        True False False True
        True True True True

    Raises:
        ValueError: nothing would be left to train.
    """

    def __init__(self, net: nn.Module, epochs: int) -> None:
        self.net, self.epochs = net, epochs
        get = getattr(net, "get_classifier", None)
        classifier = get() if callable(get) else getattr(net, "fc", None)
        self.kept = [classifier] if isinstance(classifier, nn.Module) else []
        self.norms = backbone(net, self.kept)[1]
        self._unfreeze: Callable[[], None] | None = None
        if epochs:
            freeze_backbone(net, self.kept)()  # refused now rather than when the run has begun

    def start_epoch(self, epoch: int) -> bool:
        """Put every module into the mode of this epoch, from 0; True if what needs a gradient has changed."""
        self.net.train()
        frozen = epoch < self.epochs
        for norm in self.norms if frozen else []:
            norm.eval()
        if frozen and self._unfreeze is None:
            self._unfreeze = freeze_backbone(self.net, self.kept)
            return True
        return not frozen and self.unfreeze()

    def unfreeze(self) -> bool:
        """Train the whole network again; True if something was frozen."""
        unfreeze, self._unfreeze = self._unfreeze, None
        if unfreeze is not None:
            unfreeze()
        return unfreeze is not None
