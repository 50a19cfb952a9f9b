"""Flow matching (Lipman et al. 2023, Liu et al. 2023): a generator of images, trained by regression."""

import torch
from torch import nn

from stepwell.methods.objective import Objective
from stepwell.train_mode import in_eval_mode
from stepwell.types import Batch, Images, Step


class FlowMatching(Objective):
    """Learn the velocity that moves noise to images along straight lines.

        E | net(x_t, t) - (x_1 - x_0) |²,   x_t = (1 - t) · x_0 + t · x_1,
        x_0 of N(0, 1), x_1 an image, t of U[0, 1]

    the mean over pixels and channels. Labels are unused.

    Args:
        net: (images, times (batch,)) to images of the same shape, such as `nets.unet.UNet`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Batch) -> Step:
        """The loss of one draw of noise and time for each image."""
        images = batch.images
        noise, time = torch.randn_like(images), torch.rand(len(images), device=images.device)
        share = time[:, None, None, None]
        velocity = self.net((1 - share) * noise + share * images, time)
        flow = (velocity - (images - noise)).square().mean()
        return Step(flow, {"flow": flow})

    @torch.no_grad()
    def sample(
        self, count: int, size: int, *, seed: int, steps: int = 20, batch_size: int = 256
    ) -> Images:
        """Images (count, 3, size, size), normalised like the training images, on the CPU.

        `seed` is that of the noise; Euler's method takes `steps` even steps from noise to images.
        """
        device = next(self.net.parameters()).device
        generator = torch.Generator().manual_seed(seed)
        images = []
        with in_eval_mode(self.net):
            for start in range(0, count, batch_size):
                n = min(batch_size, count - start)
                x = torch.randn(n, 3, size, size, generator=generator).to(device)
                for step in range(steps):
                    time = torch.full((n,), step / steps, device=device)
                    x = x + self.net(x, time) / steps
                images.append(x.cpu())
        return torch.cat(images)
