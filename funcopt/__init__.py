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
from funcopt.ownership import map_params as map_params
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
    scale_by_param_block_rms as scale_by_param_block_rms,
    scale_by_schedule as scale_by_schedule,
    scale_by_sign as scale_by_sign,
)
from funcopt.transforms.weight_decay import (
    AddDecayedWeightsState as AddDecayedWeightsState,
    add_decayed_weights as add_decayed_weights,
)

# Linear algebra
from funcopt.linalg.newton_schulz import newton_schulz as newton_schulz

# Optimizers, each with its update rule
from funcopt.rules.adafactor import (
    FactoredState as FactoredState,
    adafactor as adafactor,
    scale_by_factored_rms as scale_by_factored_rms,
)
from funcopt.rules.adadelta import (
    ScaleByAdaDeltaState as ScaleByAdaDeltaState,
    adadelta as adadelta,
    scale_by_adadelta as scale_by_adadelta,
)
from funcopt.rules.adagrad import ScaleByRssState as ScaleByRssState, adagrad as adagrad, scale_by_rss as scale_by_rss
from funcopt.rules.adam import (
    ScaleByAdamState as ScaleByAdamState,
    adam as adam,
    adamw as adamw,
    nadam as nadam,
    nadamw as nadamw,
    scale_by_adam as scale_by_adam,
)
from funcopt.rules.adamax import (
    ScaleByAdamaxState as ScaleByAdamaxState,
    adamax as adamax,
    adamaxw as adamaxw,
    scale_by_adamax as scale_by_adamax,
)
from funcopt.rules.amsgrad import (
    ScaleByAmsgradState as ScaleByAmsgradState,
    amsgrad as amsgrad,
    scale_by_amsgrad as scale_by_amsgrad,
)
from funcopt.rules.asgd import ASGDState as ASGDState, asgd as asgd
from funcopt.rules.muon import (
    MuonDimensionNumbers as MuonDimensionNumbers,
    MuonState as MuonState,
    muon as muon,
    scale_by_muon as scale_by_muon,
    scale_by_shape as scale_by_shape,
)
from funcopt.rules.nadam import (
    ScaleByNadamState as ScaleByNadamState,
    dozat_nadam as dozat_nadam,
    scale_by_nadam as scale_by_nadam,
)
from funcopt.rules.radam import (
    ScaleByRadamState as ScaleByRadamState,
    radam as radam,
    scale_by_radam as scale_by_radam,
)
from funcopt.rules.rmsprop import (
    ScaleByRmsState as ScaleByRmsState,
    ScaleByRStdDevState as ScaleByRStdDevState,
    rmsprop as rmsprop,
    scale_by_rms as scale_by_rms,
    scale_by_stddev as scale_by_stddev,
)
from funcopt.rules.rprop import (
    ScaleByRpropState as ScaleByRpropState,
    rprop as rprop,
    scale_by_rprop as scale_by_rprop,
)
from funcopt.rules.sgd import sgd as sgd

# Wrappers: masks and partitions
from funcopt.tree import MaskedNode as MaskedNode
from funcopt.transforms.multipliers import scale_by_path as scale_by_path
from funcopt.wrappers.describe import describe as describe
from funcopt.wrappers.masking import MaskedState as MaskedState, freeze as freeze, masked as masked
from funcopt.wrappers.partition import PartitionState as PartitionState, partition as partition
from funcopt.wrappers.patterns import by_path as by_path

# Wrappers: hyperparameters in the state
from funcopt.wrappers.hyperparams import (
    InjectHyperparamsState as InjectHyperparamsState,
    StatefulSchedule as StatefulSchedule,
    get_hyperparams as get_hyperparams,
    inject_hyperparams as inject_hyperparams,
    set_hyperparams as set_hyperparams,
)

# Wrappers: accumulation and conditions
from funcopt.wrappers.accumulation import (
    ApplyEveryState as ApplyEveryState,
    MultiSteps as MultiSteps,
    MultiStepsState as MultiStepsState,
    accumulate_gradients as accumulate_gradients,
    apply_every as apply_every,
    has_updated as has_updated,
)
from funcopt.wrappers.conditional import (
    ApplyIfFiniteState as ApplyIfFiniteState,
    ConditionallyMaskState as ConditionallyMaskState,
    ConditionallyTransformState as ConditionallyTransformState,
    apply_if_finite as apply_if_finite,
    conditionally_mask as conditionally_mask,
    conditionally_transform as conditionally_transform,
)
from funcopt.wrappers.skipping import (
    SkipIfState as SkipIfState,
    skip_if as skip_if,
    skip_large_updates as skip_large_updates,
    skip_not_finite as skip_not_finite,
)

# Wrappers: averages, and learning rates that find themselves
from funcopt.rules.schedule_free import (
    schedule_free_adamw as schedule_free_adamw,
    schedule_free_sgd as schedule_free_sgd,
)
from funcopt.wrappers.averaging import (
    EmaParamsState as EmaParamsState,
    LookaheadState as LookaheadState,
    SwaState as SwaState,
    ema_params as ema_params,
    lookahead as lookahead,
    swa as swa,
)
from funcopt.wrappers.mechanize import MechanicState as MechanicState, mechanize as mechanize
from funcopt.wrappers.plateau import (
    ReduceLROnPlateauState as ReduceLROnPlateauState,
    reduce_on_plateau as reduce_on_plateau,
)
from funcopt.wrappers.sam import SAMState as SAMState, sam as sam
from funcopt.wrappers.schedule_free import (
    ScheduleFreeState as ScheduleFreeState,
    schedule_free as schedule_free,
    schedule_free_eval_params as schedule_free_eval_params,
)
from funcopt.wrappers.views import eval_params as eval_params, train_params as train_params

# Monitors
from funcopt.transforms.metrics import (
    HasMetrics as HasMetrics,
    WithMetricsState as WithMetricsState,
    metrics as metrics,
    with_metrics as with_metrics,
)
from funcopt.transforms.monitor import (
    MonitorState as MonitorState,
    SnapshotState as SnapshotState,
    measure_with_ema as measure_with_ema,
    monitor as monitor,
    snapshot as snapshot,
)

# Projections, and changes of the tree
from funcopt.transforms.constraints import keep_params_in as keep_params_in
from funcopt.transforms.projections import (
    projection_box as projection_box,
    projection_halfspace as projection_halfspace,
    projection_hypercube as projection_hypercube,
    projection_hyperplane as projection_hyperplane,
    projection_l1_ball as projection_l1_ball,
    projection_l1_sphere as projection_l1_sphere,
    projection_l2_ball as projection_l2_ball,
    projection_l2_sphere as projection_l2_sphere,
    projection_linf_ball as projection_linf_ball,
    projection_non_negative as projection_non_negative,
    projection_simplex as projection_simplex,
    projection_vector as projection_vector,
)
from funcopt.transforms.scaling import normalize as normalize
from funcopt.wrappers.flatten import (
    RealAndImaginary as RealAndImaginary,
    SplitRealAndImaginaryState as SplitRealAndImaginaryState,
    flatten as flatten,
    split_real_and_imaginary as split_real_and_imaginary,
)
