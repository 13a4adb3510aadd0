//! Errors as answers: OpenAI's shape, the headers beside it, and what a failed job becomes.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ram_proto::openai::ApiError;

use crate::keys::KeyError;
use crate::run::Gone;
use crate::state::{HoldError, JobError};

/// When it may be worth another try at a full or stopping network: about what one answer takes.
const CAPACITY_WAIT: Duration = Duration::from_secs(5);
/// How long it may take until several nodes hold a model together.
const PIPELINE_WAIT: Duration = Duration::from_secs(30);

/// An error on its way out.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl From<Gone> for Refusal {
    fn from(_: Gone) -> Self {
        Self(ApiError::no_capacity(CAPACITY_WAIT))
    }
}

impl From<KeyError> for Refusal {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Unknown => Self(ApiError::invalid_key()),
            KeyError::Store(_) => Self(ApiError::no_capacity(CAPACITY_WAIT)),
            KeyError::BadName | KeyError::BadSecret | KeyError::NoRandomness => Self(ApiError::internal()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(error.body())).into_response();
        for (name, value) in error.headers() {
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// What the user hears of a job that failed.
pub(super) fn of_job(error: JobError) -> ApiError {
    match error {
        JobError::UnknownModel(model) => ApiError::model_not_found(&model),
        JobError::NoCapacity(_) | JobError::QueueFull(_) | JobError::Draining => {
            ApiError::no_capacity(CAPACITY_WAIT)
        }
        JobError::ProviderGone => ApiError {
            status: 409,
            code: Some("provider_gone"),
            should_retry: Some(false), // the same box again would go to the same provider
            ..ApiError::invalid_request("job_id", error.to_string())
        },
        JobError::DoesNotFit { .. } | JobError::FellApart { .. } | JobError::Loading(_) => {
            ApiError { message: error.to_string(), ..ApiError::no_capacity(PIPELINE_WAIT) }
        }
        JobError::TooManyOpen { .. } => ApiError::rate_limited(CAPACITY_WAIT),
        JobError::Hold(error @ HoldError::Unavailable) => ApiError {
            message: format!("{error}; nothing was charged"),
            ..ApiError::no_capacity(CAPACITY_WAIT)
        },
        JobError::Hold(error @ HoldError::Insufficient { .. }) => {
            ApiError::insufficient_quota(format!("{error}; lower `max_tokens` or credit the key"))
        }
        JobError::DemoBudget => ApiError::insufficient_quota(error.to_string()),
        JobError::Provider { failure } => ApiError::from(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ram_core::job::Failure;
    use ram_core::units::{TokenCount, XRam};

    fn check(error: JobError, status: u16, code: &str, retry_after: Option<u64>) {
        let told = of_job(error);
        let waits = told.retry_after.map(|wait| wait.as_secs());
        assert_eq!((told.status, told.code, waits), (status, Some(code), retry_after));
    }

    #[test]
    fn each_failure_has_the_status_that_a_client_acts_on() {
        let model = "qwen3-8b".parse::<ram_core::id::ModelId>().unwrap();
        check(JobError::UnknownModel(model.clone()), 404, "model_not_found", None);
        check(JobError::NoCapacity(model.clone()), 503, "no_capacity", Some(5));
        check(JobError::ProviderGone, 409, "provider_gone", None);
        check(JobError::Loading(model.clone()), 503, "no_capacity", Some(30));
        check(JobError::QueueFull(model), 503, "no_capacity", Some(5));
        check(JobError::TooManyOpen { most: 8 }, 429, "rate_limit_exceeded", Some(5));
        check(JobError::Draining, 503, "no_capacity", Some(5));
        check(JobError::Hold(HoldError::Unavailable), 503, "no_capacity", Some(5));
        let poor = HoldError::Insufficient { balance: XRam::ZERO, needed: XRam::from_xram(1) };
        check(JobError::Hold(poor), 429, "insufficient_quota", None);
        check(JobError::DemoBudget, 429, "insufficient_quota", None);
        let (prompt, limit) = (TokenCount::new(9), TokenCount::new(8));
        let failure = Failure::ContextLengthExceeded { prompt, limit };
        check(JobError::Provider { failure }, 400, "context_length_exceeded", None);
        check(JobError::Provider { failure: Failure::TimedOut }, 504, "timeout", None);
    }
}
