"""Models of a user's own, for the tests: one that trains, and some that vmapens must refuse."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class MeanPool(nn.Module):
    """Attention over steps of a small feed-forward net; no recurrence."""

    attention_axes = ("step",)

    def __init__(self, features: int, steps: int, outputs: int, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.score = nn.Linear(width, 1)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.embed(x))
        attention = torch.softmax(self.score(hidden).squeeze(-1), dim=-1)
        return self.head((attention.unsqueeze(-1) * hidden).sum(1)), attention

    @classmethod
    def train_plainly(cls, seed: int, x: Tensor, y: Tensor, *, epochs: int, batch_size: int, width: int) -> "MeanPool":
        torch.manual_seed(seed)
        model = cls(x.shape[2], x.shape[1], 1, width)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, weight_decay=1e-6)
        loader = DataLoader(TensorDataset(x, y), batch_size, shuffle=True)
        evaluation = DataLoader(TensorDataset(x, y), batch_size)
        for _ in range(epochs):
            for batch, labels in loader:
                loss = nn.functional.binary_cross_entropy_with_logits(model(batch)[0][:, 0], labels.float())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            list(evaluation)
        return model


class WithDropout(MeanPool):
    """Draws from the global generator."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(nn.functional.dropout(x, 0.5))


class WrongShape(MeanPool):
    """Gives one logit too many."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, attention = super().forward(x)
        return torch.cat([logits, logits], dim=1), attention


class LooksAtValues(MeanPool):
    """Its control flow depends on the data."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x if self.embed.weight.sum() > 0 else -x)


class Breaks(MeanPool):
    """Fails."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("no good\nat all")


class OtherNames(MeanPool):
    """Has layers under the names of the optional methods."""

    def __init__(self, features: int, steps: int, outputs: int) -> None:
        super().__init__(features, steps, outputs)
        self.logits = nn.Linear(features, features)
        self.attend = nn.Linear(features, features)


class PlainLSTM(MeanPool):
    """Uses an operation without a batching rule."""

    def __init__(self, features: int, steps: int, outputs: int) -> None:
        super().__init__(features, steps, outputs)
        self.lstm = nn.LSTM(features, features, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(self.lstm(x)[0])
