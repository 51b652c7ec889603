//! What can go wrong, and the exit code that says so.

use crate::backend::RemoteError;
use crate::introduce::IntroduceError;
use edgelink_config::ConfigError;
use edgelink_store::StoreError;
use std::io;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CtlError {
    /// The command makes no sense as given.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The controller did not answer, or refused.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Nobody is logged in.
    #[error("{0}")]
    Denied(String),
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    #[error("cannot write the result: {0}")]
    Json(#[from] serde_json::Error),
    /// `db check` found something; the report says what.
    #[error("the database is not sound; restore a backup, or ask for help with the report")]
    Unsound,
    /// The controller's own keys or certificate are unusable.
    #[error("{0}")]
    Damaged(String),
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

impl From<IntroduceError> for CtlError {
    fn from(error: IntroduceError) -> Self {
        match error {
            IntroduceError::Store(error) => error.into(),
            error => Self::Damaged(error.to_string()),
        }
    }
}

impl CtlError {
    /// As DESIGN §8 has them.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config(_) | Self::Store(StoreError::Invalid(_)) => 2,
            Self::Store(StoreError::Open { denied: true, .. }) | Self::Denied(_) => 4,
            Self::Remote(RemoteError::Problem(problem)) => match problem.status {
                400 | 422 => 2,
                401 | 403 | 429 => 4,
                503 => 3,
                _ => 1,
            },
            Self::Remote(RemoteError::Socket { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => 4,
            Self::Remote(RemoteError::Dial(_) | RemoteError::Socket { .. } | RemoteError::Foreign(_)) => 3,
            Self::Remote(RemoteError::Request(_)) => 2,
            Self::Store(StoreError::Missing(_) | StoreError::Locked(_) | StoreError::Open { .. }) => 3,
            Self::Store(_) | Self::Unsound | Self::Output(_) | Self::Json(_) | Self::Damaged(_) | Self::Random(_) => 1,
        }
    }
}
