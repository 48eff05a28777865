"""Fourier, wavelet and circulant matrices: ΔW = s·T⁻¹(F) with few entries in F."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaw.adapters.peft.formulas.settings import Settings, Tensors, need


def fourierft(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW = s·Re(IFFT₂(F)), F with n entries at places that follow from a seed. Source: Gao et al. 2024."""
    (values,) = need(t, s, "fourierft_spectrum")
    update: Tensor = torch.fft.ifft2(_placed(values, s)).real
    return s.number("scaling", 150.0) * update


def waveft(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW = s·(inverse wavelet transform of F), or s·F itself, F as in FourierFT. Source: WaveFT (2025).

    F, in a frame of zeros as wide as the filter reaches, is the four bands of a transform of one level.
    """
    (values,) = need(t, s, "waveft_spectrum")
    scaling, spectrum = s.number("scaling", 25.0), _placed(values, s)
    if not s.config.get("use_idwt", True):
        return scaling * spectrum
    low = _filter(s)
    high = [(-1) ** k * value for k, value in enumerate(reversed(low))]
    filters = torch.tensor([low, high], dtype=values.dtype)[:, None]
    reach = len(low) - 2

    def joined(first: Tensor, second: Tensor) -> Tensor:
        """Two bands as one, along the last axis."""
        found = F.conv_transpose1d(torch.stack([first, second], 1), filters, stride=2)[:, 0]
        return found[:, reach : found.shape[1] - reach]

    frames = [reach + side % 2 for side in s.shape]  # both sides together; a filter's length is even
    (top, left), (bottom, right) = ((frame // 2, frame - frame // 2) for frame in frames)
    spectrum = F.pad(spectrum, (bottom, right, top, left))
    upper, lower = spectrum.chunk(2, 0)
    (a, h), (v, d) = upper.chunk(2, 1), lower.chunk(2, 1)
    update = joined(joined(a, v).T, joined(h, d).T).T
    start = [(have - want) // 2 for have, want in zip(update.shape, s.shape, strict=True)]
    return scaling * update[start[0] :, start[1] :][: s.shape[0], : s.shape[1]]


def _filter(s: Settings) -> list[float]:
    """A wavelet's low-pass filter: Haar's, or one of the tables in PEFT."""
    family = s.config.get("wavelet_family", "db1")
    if family == "db1":
        return [math.sqrt(0.5)] * 2
    try:
        from peft.tuners.waveft.constants import WAVELET_REDUCTIONS
        from peft.tuners.waveft.wavelet import Wavelet
    except ImportError:
        raise s.wrong(f"the filter of wavelet_family = {family!r:.40} is a table in PEFT; pip install peft") from None
    try:
        low = list(Wavelet(str(family)).rec_lo)
    except ValueError:
        low = []
    if not low or WAVELET_REDUCTIONS.get(str(family)) != (len(low) - 2, len(low) - 2):  # so of coif5, in 0.21
        raise s.wrong(f"wavelet_family = {family!r:.40}: PEFT has no filter of it with which its own layer runs")
    return low


def _placed(values: Tensor, s: Settings) -> Tensor:
    """The values at the places that torch's generator gives for the seed, (out, in)."""
    rows, columns = s.shape
    if len(values) > rows * columns:
        raise s.wrong(f"{len(values)} values do not fit {s.shape}")
    generator = torch.Generator().manual_seed(s.whole("random_loc_seed", 777))
    places = torch.randperm(rows * columns, generator=generator)[: len(values)]
    return values.new_zeros(rows * columns).index_put((places,), values).view(rows, columns)


def c3a(t: Tensors, s: Settings) -> Tensor:
    """Return ΔW of circulant b×b blocks, (ΔW)_{mb+i, nb+j} = w_{mn, (j − i) mod b} / in. Source: Chen et al. 2025."""
    (kernel,) = need(t, s, "c3a_kernel")  # (out/b, in/b, b)
    size = kernel.shape[2]
    places = (torch.arange(size)[None, :] - torch.arange(size)[:, None]) % size
    blocks = kernel[:, :, places]  # (out/b, in/b, b, b)
    return blocks.permute(0, 2, 1, 3).reshape(kernel.shape[0] * size, -1) / (kernel.shape[1] * size)
