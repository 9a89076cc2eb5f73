"""How flat the model's trajectories are, and how near to rotations of noise into sample."""

from __future__ import annotations

from farfield.analysis.rotation import RotationOptions, analyze_rotation
from farfield.report import blocks
from farfield.report.context import ReportContext
from farfield.report.registry import Section, section


@section("rotation", "How flat the trajectories are", order=43)
def rotation(context: ReportContext) -> Section:
    """Plane of noise and sample, angle in it, and what leaves it, beside the Gaussian's closed form."""
    n, steps = (8, 18) if context.quick else (16, 24)
    found = analyze_rotation(context.subject, RotationOptions(n=n, steps=steps))
    caption = (
        f"Trajectories of {n} samples in variance-preserving coordinates, solid the model's, dashed the closed form of the "
        "data's Gaussian from the same noise. Left: in the plane that noise and sample span. Middle: their angle there; a "
        "rotation α x₀ + √(1−α²) x_T stays on the diagonal. Right: the squared distance from that rotation and from the "
        "plane, as a share of ‖x_T‖² (Wang & Vastola 2024, section 3.3 and Fig. 5; the bound is ours, the printed one holds "
        "only for variances below 5.3)."
    )
    picture = blocks.svg(
        found.plot(), "Trajectories in the plane of noise and sample, their angle, and what leaves it", 64
    )
    remark = [] if context.class_remark is None else [blocks.note(context.class_remark)]
    tables = "".join(blocks.table(part.columns, part.rows, part.title) for part in found.tables())
    out = [
        *remark,
        blocks.text(found.summary()),
        blocks.figure(picture, caption),
        blocks.details("The numbers", tables),
    ]
    return Section(out, found.to_dict())
