"""The networks and their losses.

- `generator`: the generator of Tables 1 and 2, with `attention_block` (Eqs. 6-12) and `normalization` (per region).
- `discriminator`: the patch discriminator of Table 3.
- `losses`: Eqs. 13-22, on the features of `vgg`.
- `released`: loads the weights of the authors' released code.
- `state_dicts`: reads state dicts from files of ``torch.save``, and compares their keys and shapes.
"""
