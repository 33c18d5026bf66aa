"""Train a small CLIPModel on a part of the catalogue with Hugging Face's Trainer."""

import tempfile
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, TrainingArguments

from clip_negatives import Columns, catalogue
from clip_negatives.dataset import open_table
from clip_negatives.integrations.transformers import NegativesTrainer
from clip_negatives.pipelines.prepare import prepare

work = Path(tempfile.mkdtemp())
pairs = open_table(catalogue.export(work / "catalogue", split="test", format="csv") / "test.csv", Columns(group="subgroup"))
prepare(pairs, work / "clusters")

words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
words.train_from_iterator(pairs.texts, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]", "[EOS]"]))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]")


class Listings(Dataset):
    def __len__(self):
        return len(pairs)

    def __getitem__(self, row):
        return {"picture": Image.open(pairs.image_paths[row]).convert("RGB"), "text": f"{pairs.texts[row]} [EOS]"}


def collate(samples):
    tokens = tokenizer([sample["text"] for sample in samples], padding="max_length", max_length=24, truncation=True)
    pictures = torch.stack([pil_to_tensor(sample["picture"]) for sample in samples])
    return {"pixel_values": pictures / 127.5 - 1, **tokens.convert_to_tensors("pt"), "return_loss": True}


layers = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
text = {**layers, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
config = CLIPConfig(text_config=text, vision_config={**layers, "image_size": 32, "patch_size": 8}, projection_dim=32)

trainer = NegativesTrainer(
    CLIPModel(config),
    TrainingArguments(
        str(work / "run"),
        num_train_epochs=1,
        per_device_train_batch_size=64,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        logging_steps=5,
        remove_unused_columns=False,  # the pictures and texts, which only `collate` knows
        report_to="none",
        use_cpu=True,
    ),
    data_collator=collate,
    train_dataset=Listings(),
    clusters=work / "clusters",
)
trainer.train()
