"""The plain sequential script that an ensemble is held against: one seed, `nn.LSTM`, `DataLoader`, `optim.Adam`.

Written for the tests from the description of the protocol (Yadav & Subbian, CHIL 2025); nothing of vmapens is used.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class _Attention(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.attention_dense = nn.Linear(size, size)


class PlainAttentionLSTM(nn.Module):
    """Feature (or time) attention of plain `torch.nn` parts, under the names of the paper's checkpoints."""

    def __init__(self, features: int, steps: int, hidden: int, outputs: int, over: str = "feature") -> None:
        super().__init__()
        self.over = over
        self.attention = _Attention(features if over == "feature" else steps)
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.dense = nn.Linear(hidden, outputs)

    def attend(self, x: Tensor) -> Tensor:
        rows = x if self.over == "feature" else x.transpose(1, 2)
        weights = torch.softmax(self.attention.attention_dense(rows), dim=-1)
        return weights if self.over == "feature" else weights.transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x * self.attend(x))
        return self.dense(states[:, -1])


def train_one_seed(
    seed: int,
    x: Tensor,
    y: Tensor,
    *,
    hidden: int,
    outputs: int = 1,
    epochs: int,
    batch_size: int,
    over: str = "feature",
    dtype: torch.dtype = torch.float32,
) -> PlainAttentionLSTM:
    """Seed everything with `seed`, build, train, evaluating after every epoch as the paper's script does."""
    torch.manual_seed(seed)
    model = PlainAttentionLSTM(x.shape[2], x.shape[1], hidden, outputs, over).to(dtype)
    data = TensorDataset(x.to(dtype), y)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, weight_decay=1e-6)
    loader, evaluation = DataLoader(data, batch_size, shuffle=True), DataLoader(data, batch_size)
    for _ in range(epochs):
        model.train()
        for batch, labels in loader:
            logits = model(batch)
            if outputs == 1:
                loss = nn.functional.binary_cross_entropy(torch.sigmoid(logits[:, 0]), labels.to(dtype))
            else:
                loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for batch, _ in evaluation:
                model(batch)
    return model
