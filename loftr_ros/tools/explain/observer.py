"""Records the input of a network's coarse layers while it matches a pair of images."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from loftr_ros.tools.explain.views import Inside, LayerInput, check_layers


class PairObserver:
    """Records the input of chosen coarse layers while one pair is encoded and matched.

    Use it as a context. Inside it, encode image 0, then image 1, then match them once:

        with PairObserver(inside, layers=(0, 3)) as observer:
            features0, features1 = network.encode(image0), network.encode(image1)
            matches = network.match([features0], features1)

    It hooks the network's own modules, so it records the true inputs, whatever the order and precision of the
    computation.

    Attributes:
        inputs: of each chosen layer, for image 0 and image 1; complete after the context.
    """

    def __init__(self, inside: Inside, layers: Sequence[int]) -> None:
        """Prepare the recording; it starts with the context.

        Raises:
            ValueError: a layer does not exist.
        """
        check_layers(inside.network.config.transformer, layers)
        self._inside = inside
        self._layers = sorted(set(layers))
        self._hooks: list[Any] = []
        self._tokens: tuple[Tensor, Tensor] | None = None
        self.inputs: list[LayerInput] = []

    @property
    def tokens(self) -> tuple[Tensor, Tensor]:
        """(1, L, C) and (1, S, C) features of the two images after the last layer.

        Raises:
            RuntimeError: no pair has been matched.
        """
        if self._tokens is None:
            raise RuntimeError("nothing was matched while the network was observed; expected one pair to be")
        return self._tokens

    def __enter__(self) -> PairObserver:
        transformer = self._inside.transformer
        layers = transformer.get_submodule("layers")
        assert isinstance(layers, nn.ModuleList)
        for number in self._layers:
            self._hooks.append(layers[number].register_forward_pre_hook(self._keep_input(number)))
        self._hooks.append(transformer.register_forward_hook(self._keep_tokens))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if kind is not None:
            return
        if self._tokens is None or len(self.inputs) != 2 * len(self._layers):
            raise RuntimeError(
                f"{len(self._layers)} layers were run for {len(self.inputs)} images; expected one pair to be encoded "
                "and matched, and so each of them to be run for two"
            )
        self.inputs.sort(key=lambda entry: (entry.layer, entry.image))

    def input_of(self, layer: int, image: int) -> LayerInput:
        """Record the input with which a chosen layer updates image 0 or 1."""
        return self.inputs[2 * self._layers.index(layer) + image]

    def _keep_input(self, number: int) -> Any:
        kind = self._inside.network.config.transformer.layers[number]

        def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            for parts in self._inside.given(arguments):
                # Images are encoded one by one; every later layer updates image 0 first, or both at once.
                image = sum(entry.layer == number for entry in self.inputs)
                self.inputs.append(LayerInput(number, kind, image, *parts))

        return keep

    def _keep_tokens(self, _: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> None:
        self._tokens = output
