"""Train a small CLIP model of sentence-transformers on a part of the catalogue, with weighted in-batch negatives."""

import tempfile
from pathlib import Path

from datasets import Dataset, Image
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from clip_negatives import Columns, catalogue
from clip_negatives.dataset import open_table
from clip_negatives.integrations.sentence_transformers import NegativesBatches, NegativesRankingLoss, with_index
from clip_negatives.pipelines.prepare import prepare

work = Path(tempfile.mkdtemp())
pairs = open_table(catalogue.export(work / "catalogue", split="test", format="csv") / "test.csv", Columns(group="subgroup"))
prepare(pairs, work / "clusters")

# A model of random weights and a tokenizer of the titles' words; yours is SentenceTransformer("clip-ViT-B-32") or the like.
words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
words.train_from_iterator(pairs.texts, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]", "[EOS]"]))
words.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 2)])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", model_max_length=24
)
layers = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
text = {
    **layers,
    "vocab_size": len(tokenizer),
    "max_position_embeddings": 24,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
config = CLIPConfig(text_config=text, vision_config={**layers, "image_size": 32, "patch_size": 8}, projection_dim=32)
CLIPModel(config).save_pretrained(work / "clip")
pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
CLIPProcessor(pictures, tokenizer).save_pretrained(work / "clip")
model = SentenceTransformer(modules=[Transformer(str(work / "clip"))], device="cpu")

data = Dataset.from_dict({"image": pairs.image_paths, "title": pairs.texts}).cast_column("image", Image())
trainer = SentenceTransformerTrainer(
    model,
    SentenceTransformerTrainingArguments(
        str(work / "run"),
        num_train_epochs=1,
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        batch_sampler=NegativesBatches(work / "clusters"),
        logging_steps=5,
        report_to="none",
        use_cpu=True,
    ),
    train_dataset=with_index(data, work / "clusters"),
    loss=NegativesRankingLoss(model, clusters=work / "clusters"),
)
trainer.train()
