"""Plain PyTorch versions of every operator, line by line the equations: the oracle of the tests, and what runs where no
kernel can. Any device, any floating dtype, differentiable by torch's own autograd."""
