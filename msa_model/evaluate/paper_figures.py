"""Figures of the paper, to print beside ours."""

#: Mask ratios of Table 4's columns: (low, high], the share of hole pixels.
TABLE_4_BINS = ((0.1, 0.2), (0.3, 0.4), (0.5, 0.6))

#: Table 4: data set -> metric -> method -> one figure per bin. Protocol ``paper`` (see `msa_model.metrics`).
TABLE_4: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {
    "paris": {
        "ssim": {
            "PIC": (0.9071, 0.7881, 0.6393),
            "PConv": (0.8937, 0.8042, 0.6814),
            "EdgeConnect": (0.9330, 0.8351, 0.7111),
            "Ours": (0.9327, 0.8355, 0.7061),
        },
        "psnr": {
            "PIC": (28.76, 23.70, 19.61),
            "PConv": (29.75, 25.41, 21.97),
            "EdgeConnect": (30.69, 25.35, 21.79),
            "Ours": (31.08, 25.81, 22.17),
        },
        "l1": {
            "PIC": (0.01115, 0.02921, 0.05866),
            "PConv": (0.01819, 0.02924, 0.04652),
            "EdgeConnect": (0.00862, 0.02284, 0.04284),
            "Ours": (0.00890, 0.02212, 0.04102),
        },
    },
    "celeba": {
        "ssim": {
            "PIC": (0.9380, 0.8437, 0.7085),
            "PConv": (0.9261, 0.8533, 0.7431),
            "EdgeConnect": (0.9469, 0.8605, 0.7335),
            "Ours": (0.9529, 0.8744, 0.7599),
        },
        "psnr": {
            "PIC": (30.65, 24.76, 19.55),
            "PConv": (31.43, 26.41, 21.83),
            "EdgeConnect": (31.17, 25.38, 20.23),
            "Ours": (32.42, 26.67, 21.95),
        },
        "l1": {
            "PIC": (0.00812, 0.02282, 0.05264),
            "PConv": (0.01310, 0.02277, 0.04209),
            "EdgeConnect": (0.00732, 0.02049, 0.04827),
            "Ours": (0.00630, 0.01743, 0.03774),
        },
    },
    "places2": {
        "ssim": {
            "PIC": (0.8916, 0.7521, 0.6027),
            "PConv": (0.9085, 0.7783, 0.6267),
            "EdgeConnect": (0.9081, 0.7796, 0.6352),
            "Ours": (0.9101, 0.7852, 0.6359),
        },
        "psnr": {
            "PIC": (27.54, 22.65, 18.89),
            "PConv": (28.58, 23.69, 20.20),
            "EdgeConnect": (28.41, 23.63, 20.18),
            "Ours": (28.84, 23.96, 20.41),
        },
        "l1": {
            "PIC": (0.01299, 0.03284, 0.06266),
            "PConv": (0.01237, 0.02986, 0.05435),
            "EdgeConnect": (0.01250, 0.02999, 0.05465),
            "Ours": (0.01245, 0.02863, 0.05232),
        },
    },
}


def table_4(dataset: str, low: float, high: float) -> dict[str, dict[str, float]]:
    """Returns method -> metric (psnr, ssim, l1) -> figure, for a data set and a bin; empty if the paper has none."""
    if (low, high) not in TABLE_4_BINS or dataset not in TABLE_4:
        return {}
    column = TABLE_4_BINS.index((low, high))
    figures: dict[str, dict[str, float]] = {}
    for metric, methods in TABLE_4[dataset].items():
        for method, row in methods.items():
            figures.setdefault(method, {})[metric] = row[column]
    return figures
