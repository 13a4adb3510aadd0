//! Every path, once.
//!
//! `{id}` stands for one segment, `{*id}` for the rest of the path: a model's id may hold a slash, plain or as `%2F`.

use ram_core::id::{ModelId, ProviderId};

/// `POST`: chat, in OpenAI's schema.
pub const CHAT_COMPLETIONS: &str = "/v1/chat/completions";
/// `GET`: the models, in OpenAI's schema.
pub const MODELS: &str = "/v1/models";
/// `GET`: one model, in OpenAI's schema; see [`model`].
pub const MODEL: &str = "/v1/models/{*id}";
/// `GET`: the process lives.
pub const HEALTH: &str = "/health";
/// `GET`: the process can serve.
pub const READY: &str = "/readyz";
/// `GET`, upgraded to a WebSocket: a provider's session.
pub const PROVIDER_SOCKET: &str = "/ws/provider";
/// `GET`: the providers online.
pub const PROVIDERS: &str = "/api/v1/providers";
/// `GET`: one provider; see [`provider`].
pub const PROVIDER: &str = "/api/v1/providers/{id}";
/// `GET`: the models that several providers hold together.
pub const PIPELINES: &str = "/api/v1/pipelines";
/// `GET`: the network as a whole.
pub const STATS: &str = "/api/v1/stats";
/// `GET`: the models, with who serves each, how fast and at which price.
pub const NETWORK_MODELS: &str = "/api/v1/models";
/// `GET`: what 1,000 tokens cost now.
pub const PRICING: &str = "/api/v1/pricing";
/// `GET`: what one request can cost at most.
pub const QUOTE: &str = "/api/v1/quote";
/// `GET`: the providers that open sealed prompts, with their keys.
pub const E2E_PROVIDERS: &str = "/api/v1/e2e/providers";
/// `POST`: a provider for a sealed request, before it is sealed.
pub const E2E_INIT: &str = "/api/v1/e2e/init";
/// `POST`: the sealed request.
pub const E2E_SUBMIT: &str = "/api/v1/e2e/submit";
/// `GET`: the description of all this, in OpenAPI 3.1.
pub const OPENAPI: &str = "/openapi.json";

/// `GET`, for the operator: what is counted, as Prometheus reads it.
pub const METRICS: &str = "/metrics";
/// `GET` and `POST`, for the operator: all keys; a new one.
pub const ADMIN_KEYS: &str = "/api/v1/admin/keys";
/// `DELETE`, for the operator: refuse a key from now on.
pub const ADMIN_KEY: &str = "/api/v1/admin/keys/{id}";
/// `POST`, for the operator: more for a key to spend.
pub const ADMIN_KEY_CREDIT: &str = "/api/v1/admin/keys/{id}/credit";
/// `GET`, `POST` and `DELETE`, for the operator: whether the network takes jobs; let it take none; let it again.
pub const ADMIN_DRAIN: &str = "/api/v1/admin/drain";
/// `GET`, for the operator: the settings.
pub const ADMIN_CONFIG: &str = "/api/v1/admin/config";
/// `POST` and `DELETE`, for the operator: take a provider out of service, or back in.
pub const ADMIN_PROVIDER_DRAIN: &str = "/api/v1/admin/providers/{id}/drain";

/// Those for the operator, on a listener of their own.
pub const ADMIN: [&str; 7] =
    [METRICS, ADMIN_KEYS, ADMIN_KEY, ADMIN_KEY_CREDIT, ADMIN_DRAIN, ADMIN_CONFIG, ADMIN_PROVIDER_DRAIN];

/// All that anybody may ask for.
pub const ALL: [&str; 17] = [
    CHAT_COMPLETIONS,
    MODELS,
    MODEL,
    HEALTH,
    READY,
    PROVIDER_SOCKET,
    PROVIDERS,
    PROVIDER,
    PIPELINES,
    STATS,
    NETWORK_MODELS,
    PRICING,
    QUOTE,
    E2E_PROVIDERS,
    E2E_INIT,
    E2E_SUBMIT,
    OPENAPI,
];

/// The path of one model.
#[must_use]
pub fn model(id: &ModelId) -> String {
    format!("{MODELS}/{id}")
}

/// The path of one provider.
#[must_use]
pub fn provider(id: ProviderId) -> String {
    format!("{PROVIDERS}/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_stands_twice_and_none_ends_in_a_slash() {
        let all: Vec<&str> = ALL.into_iter().chain(ADMIN).collect();
        for (index, path) in all.iter().enumerate() {
            assert!(path.starts_with('/') && !path.ends_with('/'));
            assert!(!all[..index].contains(path));
        }
    }

    #[test]
    fn a_models_path_keeps_the_slash_of_its_id() {
        let id = "mlx-community/Qwen3-8B-4bit".parse().unwrap();
        assert_eq!(model(&id), "/v1/models/mlx-community/Qwen3-8B-4bit");
    }
}
