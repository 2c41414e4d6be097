"""A training that is killed on its way."""

from compress.task import ClassificationTask


class Killed(BaseException):
    """Stands for a kill in the middle of a step."""


class DiesAfter(ClassificationTask):
    """Dies in the loss of one training batch."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def loss(self, outputs, batch):
        if outputs.requires_grad:
            self.left -= 1
            if self.left < 0:
                raise Killed
        return super().loss(outputs, batch)
