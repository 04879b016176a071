"""One variant trained by a plain script, epoch by epoch with evaluation: the best such script, and the notebooks'."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.experiment import Experiment
from benchmarks.plain import PlainAttentionLSTM
from benchmarks.problem import LR, WEIGHT_DECAY
from vmapens.ensemble import metrics
from vmapens.ensemble.seeds import Order, construct

_PREDICTION_BATCH = 256


class Script:
    """The best sequential way: data in memory, batches gathered by index, fused Adam, one metric computed by sorting.

    Args:
        experiment: Cohort and sizes.
        seed: Of initialisation and order.

    Attributes:
        kept_epoch: The epoch of the highest AUROC on the valid split, counted from 1; 0 before the first.
    """

    def __init__(self, experiment: Experiment, seed: int) -> None:
        module, state = construct(experiment.factory, seed)
        self._batch, self._data = experiment.spec.train.batch_size, experiment.splits
        self._device = experiment.device
        self._model = PlainAttentionLSTM(self._data.x.shape[2], experiment.spec.model.hidden)
        self._model.load_state_dict(module.state_dict())
        self._model.to(self._device)
        self._order = Order(state, len(self._data.x), None)
        self._optimizer = self._make_optimizer()
        self._best: dict[str, Tensor] = {}
        self._best_score = -np.inf
        self._epoch = self.kept_epoch = 0

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self._model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)

    def _batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        for index in self._order.next_epoch().to(self._device).split(self._batch):
            yield self._data.x.index_select(0, index), self._data.y.index_select(0, index).float()

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self._model(x), y)

    def epoch(self) -> tuple[float, float, float]:
        """Train for one epoch, evaluate, and keep the parameters if they are the best so far.

        Returns:
            Mean training loss (before each step), valid loss, valid AUROC.
        """
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for x, y in self._batches():
            loss = self._loss(x, y)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            total += loss.detach() * len(y)
        valid_loss, auroc = self._evaluate()
        self._epoch += 1
        if auroc > self._best_score:
            self._best = {name: value.clone() for name, value in self._model.state_dict().items()}
            self._best_score, self.kept_epoch = auroc, self._epoch
        return total.item() / len(self._data.x), valid_loss, auroc

    def _evaluate(self) -> tuple[float, float]:
        y, probability = self._data.valid_y.cpu().numpy(), self.predict(self._data.valid_x)[None]
        return metrics.log_loss(y, probability).item(), metrics.auroc(y, probability).item()

    def predict(self, x: Tensor) -> np.ndarray:
        """Probabilities [N] under the parameters as they are."""
        with torch.inference_mode():
            parts = [torch.sigmoid(self._model(part)) for part in x.split(_PREDICTION_BATCH)]
            return torch.cat(parts).cpu().numpy()

    def take_best(self) -> dict[str, Tensor]:
        """Go back to the kept epoch; its parameters."""
        self._model.load_state_dict(self._best)
        return self._best

    def parameters(self) -> dict[str, np.ndarray]:
        """As they are, by name."""
        return {name: value.cpu().numpy() for name, value in self._model.state_dict().items()}


class NotebookScript(Script):
    """The notebooks' way: batches from a `DataLoader` with one worker, scores through Python lists to scikit-learn."""

    def __init__(self, experiment: Experiment, seed: int) -> None:
        super().__init__(experiment, seed)
        data = self._data
        self._train = TensorDataset(data.x.cpu(), data.y.cpu())
        self._valid = TensorDataset(data.valid_x.cpu(), data.valid_y.cpu())

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self._model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)

    def _batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        return self._loaded(self._train, self._order.next_epoch().tolist())

    def _loaded(self, dataset: TensorDataset, order: Sequence[int]) -> Iterable[tuple[Tensor, Tensor]]:
        for batch, labels in DataLoader(dataset, self._batch, sampler=order, num_workers=1):
            yield batch.to(self._device), labels.to(self._device).float()

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy(torch.sigmoid(self._model(x)), y)

    def _evaluate(self) -> tuple[float, float]:
        from sklearn.metrics import log_loss, roc_auc_score

        labels: list[float] = []
        scores: list[float] = []
        with torch.no_grad():
            for batch, truth in self._loaded(self._valid, range(len(self._valid))):
                labels.extend(truth.cpu().numpy().tolist())
                scores.extend(torch.sigmoid(self._model(batch)).cpu().numpy().tolist())
        return float(log_loss(labels, scores)), float(roc_auc_score(labels, scores))


SCRIPTS: dict[str, type[Script]] = {"b": Script, "c": NotebookScript}
