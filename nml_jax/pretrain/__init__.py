"""Noisy supervision -> an encoder.

supervised   cross-entropy on noisy labels
contrastive  image-text contrastive learning (CLIP) on noisy captions
pairwise     the losses over all pairs of a batch, InfoNCE and the sigmoid loss, on one device or many
tiles        their matrix of logits, piece by piece
gradient_cache   their gradients where the encoders see a microbatch at a time
zero_shot, retrieval     what contrastive pre-training is evaluated by
templates    prompts of zero-shot classification
objective    what an objective hands to the stage
noisy        the clean column of a source, corrupted and recorded in noise.npz
run          the stage

Contract of an objective, `nml_jax/pretrain/<name>.py`:

    SUPERVISION = "labels" | "captions"                # what the noise corrupts
    def check(config)                                  # UserError for a model that cannot work
    def prepare(config, source, supervision, workdir) -> Prepared
    def encode(config) -> (params, stats, image) -> (B, D) features

`Prepared` has the Task, the batch's targets (a row for each record of the source) and how to evaluate.
`encode` needs the config alone: the features stage rebuilds the encoder from a checkpoint with it.
"""
