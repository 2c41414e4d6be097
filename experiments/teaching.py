"""A student of another architecture in the place of the pruned network: what is planned for it, and if it is small."""

from dataclasses import replace

from compress.errors import BudgetError
from compress.plan import CompressionPlan, LayerFormat
from experiments.run_files import DECISION_FILES
from experiments.shrinking import Shrinking


class Teaching(Shrinking):
    """A given smaller network learns from the dense one, which is neither measured nor cut.

    (Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", arXiv:1312.6184; Hinton, Vinyals and Dean 2015,
    arXiv:1503.02531.) Its training is the fine-tuning of the configuration, from its own first weights; masks, number
    formats and files come about as for a pruned network.
    """

    def plan_student(self) -> None:
        """Write the plan of the student: no unit goes, every layer gets the most bits that are configured, or none.

        What an earlier run in this folder decided for the dense network is deleted: it is no part of this run.
        """
        settings = self.config.quantize
        if settings.enabled and (settings.ranks or min(settings.densities) < 1):
            self.warnings.append("quantize.ranks and quantize.densities have no effect on a student.")
        if self.config.front:
            self.warnings.append("front has no effect on a student: nothing of it is measured.")
        if settings.enabled and settings.schemes:
            self.warnings.append("quantize.schemes has no effect on a student.")
        for name in DECISION_FILES:
            (self.run_dir.path / name).unlink(missing_ok=True)
        self.student_plan().save(self.run_dir.file("plan.json"))

    def student_plan(self) -> CompressionPlan:
        """The plan that `plan_student` writes."""
        settings, units = self.config.quantize, self.planned.units
        bits = max(settings.bits)
        layers = [name for name, kind in zip(units.ids, units.kind, strict=True) if kind == "layer"]
        low = settings.enabled and bits <= 8
        formats = {name: self.in_scheme(LayerFormat(bits)) for name in layers} if low else {}
        plan = CompressionPlan(
            layer_formats=formats,
            activation_bits=self.activation_bits(formats.values()),
            activation_ranges=settings.activation_ranges,
            fingerprint=units.fingerprint,
            provenance={"student": self.config.student["_target_"], "seed": self.config.seed},
        )
        macs, weight_bytes = self.cost_of(plan)
        # Other formats have parameters of their own: their bytes are told when they are there.
        exact = all(layer_format.on_integers for layer_format in plan.layer_formats.values())
        return replace(plan, predicted_cost={"macs": macs, **({"weight_bytes": weight_bytes} if exact else {})})

    def refuse_impossible_budget(self) -> None:
        """Refuse, before any training, a budget that no plan meets, or that the student exceeds.

        Raises:
            BudgetError: naming the bound.
        """
        if self.parts.student is None:
            return super().refuse_impossible_budget()
        cost = self.student_plan().predicted_cost
        for name, bound in self.parts.budget.absolute(self.costs.dense).items():
            if cost.get(name, 0.0) > bound:
                raise BudgetError(
                    f"The student has {cost[name]:.0f} {name}, the budget allows {bound:.0f}. Choose a smaller one, or "
                    f"a larger budget.{name}."
                )
        return None
