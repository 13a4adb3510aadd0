//! Errors in OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`, with the status and headers beside.
//!
//! Official clients choose an exception by status, retry 408, 409, 429 and 5xx on their own, and obey `retry-after`
//! and `x-should-retry`. So whatever is final is a 4xx at once, or says `x-should-retry: false`.

use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use ram_core::id::ModelId;
use ram_core::job::Failure;
use ram_core::units::{Bytes, TokenCount};

/// Longest wait that an answer asks for: beyond a minute the official clients give up, or ignore the header.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// How long a client should wait when no node is free: about what a short answer takes.
const CAPACITY_WAIT: Duration = Duration::from_secs(5);

/// One refusal or failure, as a client of the API sees it.
///
/// The message never holds words of a prompt or an answer. It serialises as its [`ErrorBody`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// OpenAI's `type`.
    pub kind: ErrorType,
    /// What was expected, for a person.
    pub message: String,
    /// The path of the field at fault, such as `messages[2].content[0].type`.
    pub param: Option<String>,
    /// What happened, for a program.
    pub code: Option<&'static str>,
    /// Header `retry-after`, 1 second to [`RETRY_AFTER_MAX`].
    pub retry_after: Option<Duration>,
    /// Header `x-should-retry`: overrides what clients make of the status.
    pub should_retry: Option<bool>,
}

/// OpenAI's classes of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorType {
    /// The request is at fault.
    InvalidRequestError,
    /// The caller has nothing left to spend.
    InsufficientQuota,
    /// The caller is too fast.
    RateLimitError,
    /// The network is at fault.
    ServerError,
}

/// The body of an error, as it stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// The only field.
    pub error: ErrorDetail,
}

/// What stands inside `error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorDetail {
    /// What was expected, for a person.
    pub message: String,
    /// The class of the error.
    #[serde(rename = "type")]
    pub kind: ErrorType,
    /// The path of the field at fault.
    pub param: Option<String>,
    /// What happened, for a program.
    pub code: Option<String>,
}

impl ApiError {
    /// 400: a field's value is not what it must be.
    #[must_use]
    pub fn invalid_request(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), code: Some("invalid_value"), ..Self::fault(400, message) }
    }

    /// 400: the body as a whole is no request.
    #[must_use]
    pub fn malformed_body(message: impl Into<String>) -> Self {
        Self { code: Some("invalid_json"), ..Self::fault(400, message) }
    }

    /// 400: the body ended before it was whole.
    #[must_use]
    pub fn broken_body() -> Self {
        Self::malformed_body("the body broke off")
    }

    /// 400: a field, or a value of it, that OpenAI knows and this network does not honour.
    #[must_use]
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::invalid_request(param, message) }
    }

    /// 400: prompt and answer do not fit into the model's context.
    #[must_use]
    pub fn context_length_exceeded(prompt: TokenCount, limit: TokenCount) -> Self {
        let message = Failure::ContextLengthExceeded { prompt, limit }.to_string();
        Self { code: Some("context_length_exceeded"), ..Self::invalid_request("messages", message) }
    }

    /// 401: no key came along.
    #[must_use]
    pub fn missing_key() -> Self {
        let message = "no API key: send the header `authorization: Bearer KEY`";
        Self { code: Some("missing_api_key"), ..Self::fault(401, message) }
    }

    /// 401: the key is unknown or revoked; which of the two is not told.
    #[must_use]
    pub fn invalid_key() -> Self {
        Self { code: Some("invalid_api_key"), ..Self::fault(401, "the API key is not valid") }
    }

    /// 403: the key is good, but not for this.
    #[must_use]
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self { code: Some("forbidden"), ..Self::fault(403, message) }
    }

    /// 404: no such model.
    #[must_use]
    pub fn model_not_found(model: &ModelId) -> Self {
        Self::no_such_model(format!("the model `{model}` does not exist"))
    }

    /// 404: a text that cannot be a model's name; it is not repeated.
    pub(super) fn no_such_model(message: impl Into<String>) -> Self {
        Self { param: Some("model".into()), code: Some("model_not_found"), ..Self::fault(404, message) }
    }

    /// 404: nothing stands under this path.
    #[must_use]
    pub fn unknown_route() -> Self {
        Self { code: Some("unknown_url"), ..Self::fault(404, "there is nothing at this path") }
    }

    /// 404: the path is good, but the thing it names is not there.
    #[must_use]
    pub fn not_found(what: &str) -> Self {
        Self { code: Some("not_found"), ..Self::fault(404, format!("there is no such {what}")) }
    }

    /// 405: the path is good, the method is not.
    #[must_use]
    pub fn method_not_allowed(allowed: &str) -> Self {
        let message = format!("this path answers to {allowed}");
        Self { code: Some("method_not_allowed"), ..Self::fault(405, message) }
    }

    /// 408: the body took too long.
    #[must_use]
    pub fn request_timeout() -> Self {
        Self { code: Some("request_timeout"), ..Self::fault(408, "the body did not arrive in time") }
    }

    /// 413: the body is longer than anybody needs.
    #[must_use]
    pub fn too_large(limit: Bytes) -> Self {
        let message = format!("the body is over the limit of {limit}");
        Self { code: Some("request_too_large"), ..Self::fault(413, message) }
    }

    /// 429, and final: the caller has nothing left to spend.
    ///
    /// OpenAI's status, so that the official clients raise what their users catch; `x-should-retry: false` keeps them
    /// from the retries that a 429 would else start.
    #[must_use]
    pub fn insufficient_quota(message: impl Into<String>) -> Self {
        Self {
            kind: ErrorType::InsufficientQuota,
            code: Some("insufficient_quota"),
            should_retry: Some(false),
            ..Self::fault(429, message)
        }
    }

    /// 429: the caller is too fast.
    #[must_use]
    pub fn rate_limited(retry_after: Duration) -> Self {
        let error = Self {
            kind: ErrorType::RateLimitError,
            code: Some("rate_limit_exceeded"),
            ..Self::fault(429, "too many requests: wait as long as `retry-after` says")
        };
        error.wait(retry_after)
    }

    /// 499: whoever asked has gone. Only logs see it.
    #[must_use]
    pub fn cancelled() -> Self {
        let message = "the request was cancelled";
        Self { code: Some("cancelled"), should_retry: Some(false), ..Self::fault(499, message) }
    }

    /// 500, and final: the answer is longer than one that is told in one piece can be. Tokens were charged for it, and
    /// the next would be as long.
    #[must_use]
    pub fn answer_too_long(limit: Bytes) -> Self {
        let message = format!(
            "the answer is over the limit of {limit} for one that is told in one piece: set `stream`, or ask for \
             fewer `top_logprobs`"
        );
        Self::failure(500, "answer_too_long", &message).after_charge()
    }

    /// 500: a fault of ours.
    #[must_use]
    pub fn internal() -> Self {
        Self::failure(500, "internal_error", "something went wrong on our side")
    }

    /// 503: nobody can take the request now.
    #[must_use]
    pub fn no_capacity(retry_after: Duration) -> Self {
        Self::failure(503, "no_capacity", "no provider can take this request now").wait(retry_after)
    }

    /// 504: no answer in time.
    #[must_use]
    pub fn timeout() -> Self {
        Self::failure(504, "timeout", "no provider answered in time")
    }

    /// The same error after tokens were charged: clients must not send the request again by themselves.
    #[must_use]
    pub fn after_charge(self) -> Self {
        Self { retry_after: None, should_retry: Some(false), ..self }
    }

    /// The body that carries this error.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorDetail {
                message: self.message.clone(),
                kind: self.kind,
                param: self.param.clone(),
                code: self.code.map(str::to_owned),
            },
        }
    }

    /// The headers that go with this error, names in lower case.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        let retry_after = self.retry_after.map(|wait| ("retry-after", wait.as_secs().to_string()));
        let should_retry = self.should_retry.map(|retry| ("x-should-retry", retry.to_string()));
        retry_after.into_iter().chain(should_retry)
    }

    /// The caller's fault, without particulars.
    fn fault(status: u16, message: impl Into<String>) -> Self {
        Self {
            status,
            kind: ErrorType::InvalidRequestError,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
            should_retry: None,
        }
    }

    /// The network's fault.
    fn failure(status: u16, code: &'static str, message: &str) -> Self {
        Self { kind: ErrorType::ServerError, code: Some(code), ..Self::fault(status, message) }
    }

    /// With `retry-after`, rounded up to whole seconds.
    fn wait(self, wait: Duration) -> Self {
        let wait = wait.clamp(Duration::from_secs(1), RETRY_AFTER_MAX);
        let rounded = Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
        Self { retry_after: Some(rounded), ..self }
    }
}

impl From<Failure> for ApiError {
    /// How a job's end is told when no other attempt is left.
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::ContextLengthExceeded { prompt, limit } => Self::context_length_exceeded(prompt, limit),
            Failure::ToolsUnsupported => Self::unsupported("tools", failure.to_string()),
            Failure::InvalidPrompt => Self {
                code: Some("invalid_prompt"),
                ..Self::invalid_request("messages", failure.to_string())
            },
            Failure::InvalidFormat | Failure::FormatFailed => Self {
                code: Some("invalid_response_format"),
                ..Self::invalid_request("response_format", failure.to_string())
            },
            Failure::Unopened => Self {
                code: Some("sealed_unopened"),
                ..Self::invalid_request("encrypted_prompt_b64", failure.to_string())
            },
            Failure::ModelUnavailable | Failure::OutOfMemory | Failure::Overloaded | Failure::Draining => {
                Self::no_capacity(CAPACITY_WAIT)
            }
            Failure::Cancelled => Self::cancelled(),
            Failure::ProviderLost => {
                Self::failure(503, "provider_lost", "the provider was lost").wait(Duration::from_secs(1))
            }
            Failure::TimedOut => Self::timeout(),
            Failure::Internal => Self::internal(),
        }
    }
}

impl Serialize for ApiError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.body().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_all_four_fields_even_when_null() {
        let text = serde_json::to_string(&ApiError::timeout()).unwrap();
        let expected = r#"{"error":{"message":"no provider answered in time","type":"server_error","param":null,"code":"timeout"}}"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn a_wait_is_whole_seconds_from_one_to_sixty() {
        let check = |wait: Duration, seconds: u64| {
            let error = ApiError::no_capacity(wait);
            assert_eq!(error.headers().collect::<Vec<_>>(), [("retry-after", seconds.to_string())]);
        };
        check(Duration::ZERO, 1);
        check(Duration::from_millis(1), 1);
        check(Duration::from_millis(1001), 2);
        check(Duration::from_secs(60), 60);
        check(Duration::from_secs(3600), 60);
        check(Duration::MAX, 60);
    }

    #[test]
    fn what_is_final_is_never_retried_by_a_client() {
        let final_ones = [
            ApiError::insufficient_quota("the session is spent"),
            ApiError::no_capacity(Duration::from_secs(9)).after_charge(),
            ApiError::cancelled(),
        ];
        for error in final_ones {
            assert_eq!(error.headers().collect::<Vec<_>>(), [("x-should-retry", "false".to_owned())]);
        }
    }

    #[test]
    fn each_failure_says_by_its_status_whose_fault_it_is() {
        let check = |failure: Failure, status: u16| assert_eq!(ApiError::from(failure).status, status);
        let (prompt, limit) = (TokenCount::new(9000), TokenCount::new(8192));
        check(Failure::ContextLengthExceeded { prompt, limit }, 400);
        check(Failure::InvalidPrompt, 400);
        check(Failure::ToolsUnsupported, 400);
        check(Failure::InvalidFormat, 400);
        check(Failure::FormatFailed, 400);
        check(Failure::Unopened, 400);
        check(Failure::Cancelled, 499);
        check(Failure::Internal, 500);
        for busy in [Failure::ModelUnavailable, Failure::OutOfMemory, Failure::Overloaded, Failure::Draining]
        {
            check(busy, 503);
        }
        check(Failure::ProviderLost, 503);
        check(Failure::TimedOut, 504);
    }
}
