"""How fast each kind of a student's parameters trains."""

from dataclasses import dataclass

from onnxdfq.training.float_student import FloatStudent
from onnxdfq.training.loop import Group
from onnxdfq.training.student import Student
from onnxdfq.tuning.reconstruction import typical_size


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates, in units that suit every layer.

    weight: in steps of the weights' grids. factor: of the factor or scale of each channel of a weight, in log2. scale:
    of activation scales, in log2. bias: in units of the layer's root mean square bias.
    """

    weight: float = 1e-3
    factor: float = 1e-3
    scale: float = 4e-3
    bias: float = 1e-3

    def groups(self, student: Student) -> list[Group]:
        """All parameters of a student."""
        shadows = list(student.shadows())
        groups = [
            Group(parameters=[shadow.position for shadow in shadows], rate=self.weight),
            Group(parameters=[shadow.change for shadow in shadows], rate=self.factor),
            Group(parameters=student.scales(), rate=self.scale),
        ]
        groups += [Group(parameters=[bias], rate=self.bias * typical_size(bias)) for bias in student.biases()]
        return [group for group in groups if group.parameters]


@dataclass(frozen=True, kw_only=True)
class FloatRates:
    """Learning rates of a float student.

    rate: of all. weight_decay: of weights; biases and what normalizations hold are drawn nowhere.
    """

    rate: float = 0.1
    weight_decay: float = 5e-4

    def groups(self, student: FloatStudent) -> list[Group]:
        """All parameters of a student."""
        groups = [
            Group(parameters=student.weights(), rate=self.rate, weight_decay=self.weight_decay),
            Group(parameters=student.vectors(), rate=self.rate),
        ]
        return [group for group in groups if group.parameters]
