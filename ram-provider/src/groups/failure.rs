//! What the coordinator is told of layers that are not held, by what went wrong here.

use ram_infer::error::InferError;
use ram_infer::hub::HubError;
use ram_proto::control::shard::ShardFailure;

/// Of a model's folder.
pub(super) const fn of_model(error: &InferError) -> ShardFailure {
    match error {
        InferError::UnsupportedArchitecture { .. }
        | InferError::Unsupported { .. }
        | InferError::UnsupportedQuantization { .. } => ShardFailure::UnsupportedModel,
        InferError::NoSuchLayers { .. } => ShardFailure::UnknownModel,
        InferError::NoMemory { .. } | InferError::Thread { .. } => ShardFailure::OutOfMemory,
        InferError::Unwritable { .. } => ShardFailure::DiskFull,
        InferError::Device { .. }
        | InferError::DeviceUnavailable { .. }
        | InferError::WholeOnly { .. }
        | InferError::NoHead
        | InferError::ShardInput { .. } => ShardFailure::Internal,
        // The folder is not what it should be: another copy of it may be.
        _ => ShardFailure::Unavailable,
    }
}

/// Of a fetch.
pub(super) const fn of_hub(error: &HubError) -> ShardFailure {
    match error {
        HubError::NoRepository { .. } | HubError::NotFound { .. } | HubError::NoSuchLayers { .. } => {
            ShardFailure::UnknownModel
        }
        HubError::NotServable { .. } => ShardFailure::UnsupportedModel,
        HubError::DiskFull { .. } => ShardFailure::DiskFull,
        _ => ShardFailure::Unavailable,
    }
}
