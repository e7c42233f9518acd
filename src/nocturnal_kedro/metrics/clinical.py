"""Error grids: the clinical zone of each pair of reference and forecast."""

from __future__ import annotations

import numpy as np

ZONES = ("A", "B", "C", "D", "E")


def clarke_zones(reference_mg_dl: np.ndarray, forecast_mg_dl: np.ndarray) -> np.ndarray:
    """Clarke error grid zone, letters A to E, of each pair in mg/dL; NaN pairs raise ValueError.

    Clarke et al. 1987, Diabetes Care 10:622. With r the reference and p the forecast, in this
    order: A if |p - r| <= 0.2 r or both <= 70; E if (r <= 70 and p >= 180) or (r >= 180 and
    p <= 70); C if (r >= 70 and p >= r + 110) or (130 <= r <= 180 and p <= 1.4 r - 182); D if
    (r >= 240 or r <= 70) and 70 <= p <= 180; else B. The upper C zone has no cap.
    Worked points: (100, 120) A, (100, 150) B, (100, 250) C, (50, 120) D, (60, 200) E.
    """
    r = np.asarray(reference_mg_dl, dtype=np.float64)
    p = np.asarray(forecast_mg_dl, dtype=np.float64)
    if np.isnan(r).any() or np.isnan(p).any():
        raise ValueError("clarke_zones: NaN has no zone; drop unobserved pairs before.")
    # 0.2 r and 1.4 r are not exact in binary: without slack (100, 120) could fall out of A.
    slack = 1e-9 * np.maximum(np.abs(r), 1.0)
    in_a = (np.abs(p - r) <= 0.2 * r + slack) | ((r <= 70) & (p <= 70))
    in_e = ((r <= 70) & (p >= 180)) | ((r >= 180) & (p <= 70))
    in_c = ((r >= 70) & (p >= r + 110)) | ((r >= 130) & (r <= 180) & (p <= 1.4 * r - 182 + slack))
    in_d = ((r >= 240) | (r <= 70)) & (p >= 70) & (p <= 180)
    return np.select([in_a, in_e, in_c, in_d], ["A", "E", "C", "D"], default="B")
