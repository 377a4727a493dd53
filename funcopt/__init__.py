"""Functional optimizers for PyTorch: pure `init` / `update` pairs over pytrees of tensors."""

# The protocol, composition, and the application of updates
from funcopt.transform import (
    EmptyState as EmptyState,
    GradientTransformation as GradientTransformation,
    Mask as Mask,
    Params as Params,
    ScalarOrSchedule as ScalarOrSchedule,
    Schedule as Schedule,
    State as State,
    Updates as Updates,
    apply_updates as apply_updates,
    chain as chain,
    factory as factory,
    identity as identity,
    incremental_update as incremental_update,
    named_chain as named_chain,
    periodic_update as periodic_update,
    schedule_factory as schedule_factory,
    set_to_zero as set_to_zero,
    stateless as stateless,
    stateless_with_tree_map as stateless_with_tree_map,
)
from funcopt import tree as tree
from funcopt.tree import global_norm as global_norm

# Packing and compilation
from funcopt.pack import (
    Layout as Layout,
    Packed as Packed,
    pack as pack,
    pack_like as pack_like,
    unpack as unpack,
)
from funcopt.compile import compile as compile

# Schedules
from funcopt.schedules.cyclic import (
    cosine_onecycle_schedule as cosine_onecycle_schedule,
    linear_onecycle_schedule as linear_onecycle_schedule,
    sgdr_schedule as sgdr_schedule,
)
from funcopt.schedules.decay import (
    constant_schedule as constant_schedule,
    cosine_decay_schedule as cosine_decay_schedule,
    exponential_decay as exponential_decay,
    linear_schedule as linear_schedule,
    polynomial_schedule as polynomial_schedule,
)
from funcopt.schedules.join import (
    join_schedules as join_schedules,
    piecewise_constant_schedule as piecewise_constant_schedule,
    piecewise_interpolate_schedule as piecewise_interpolate_schedule,
)
from funcopt.schedules.warmup import (
    inverse_sqrt_schedule as inverse_sqrt_schedule,
    warmup_constant_schedule as warmup_constant_schedule,
    warmup_cosine_decay_schedule as warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule as warmup_exponential_decay_schedule,
    warmup_stable_decay_schedule as warmup_stable_decay_schedule,
)

# Randomness
from funcopt import random as random

# Transformations
from funcopt.transforms.clipping import (
    ClipByGlobalNormState as ClipByGlobalNormState,
    adaptive_grad_clip as adaptive_grad_clip,
    clip as clip,
    clip_by_block_rms as clip_by_block_rms,
    clip_by_global_norm as clip_by_global_norm,
    per_example_global_norm_clip as per_example_global_norm_clip,
    per_example_layer_norm_clip as per_example_layer_norm_clip,
    unitwise_clip as unitwise_clip,
    unitwise_norm as unitwise_norm,
)
from funcopt.transforms.constraints import (
    ZeroNansState as ZeroNansState,
    keep_params_nonnegative as keep_params_nonnegative,
    zero_nans as zero_nans,
)
from funcopt.transforms.momentum import (
    EmaState as EmaState,
    TraceState as TraceState,
    ema as ema,
    trace as trace,
)
from funcopt.transforms.noise import AddNoiseState as AddNoiseState, add_noise as add_noise
from funcopt.transforms.scaling import (
    ScaleByLearningRateState as ScaleByLearningRateState,
    ScaleByScheduleState as ScaleByScheduleState,
    centralize as centralize,
    normalize_by_update_norm as normalize_by_update_norm,
    scale as scale,
    scale_by_learning_rate as scale_by_learning_rate,
    scale_by_schedule as scale_by_schedule,
    scale_by_sign as scale_by_sign,
)
from funcopt.transforms.weight_decay import (
    AddDecayedWeightsState as AddDecayedWeightsState,
    add_decayed_weights as add_decayed_weights,
)

# Optimizers, each with its update rule
from funcopt.rules.adagrad import ScaleByRssState as ScaleByRssState, adagrad as adagrad, scale_by_rss as scale_by_rss
from funcopt.rules.adam import (
    ScaleByAdamState as ScaleByAdamState,
    adam as adam,
    adamw as adamw,
    nadam as nadam,
    nadamw as nadamw,
    scale_by_adam as scale_by_adam,
)
from funcopt.rules.amsgrad import (
    ScaleByAmsgradState as ScaleByAmsgradState,
    amsgrad as amsgrad,
    scale_by_amsgrad as scale_by_amsgrad,
)
from funcopt.rules.rmsprop import (
    ScaleByRmsState as ScaleByRmsState,
    ScaleByRStdDevState as ScaleByRStdDevState,
    rmsprop as rmsprop,
    scale_by_rms as scale_by_rms,
    scale_by_stddev as scale_by_stddev,
)
from funcopt.rules.sgd import sgd as sgd

# Wrappers: masks and partitions

# Wrappers: hyperparameters in the state

# Wrappers: accumulation and conditions

# Wrappers: averages, and learning rates that find themselves

# Monitors

# Projections, and changes of the tree
