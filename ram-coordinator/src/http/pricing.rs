//! `/api/v1/models`, `/api/v1/pricing` and `/api/v1/quote`: what there is, and what it costs.

use std::fmt;
use std::str::FromStr;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use ram_core::id::ModelId;
use ram_core::units::TokenCount;
use ram_proto::openai::ApiError;
use ram_proto::rest::Quote;

use super::Gateway;
use super::error::Refusal;

pub(super) async fn models(State(gateway): State<Gateway>) -> Result<Response, Refusal> {
    let build = async || gateway.handle.ask(|core, _| core.network_models()).await;
    gateway.front.network_models.take(build).await
}

pub(super) async fn prices(State(gateway): State<Gateway>) -> Result<Response, Refusal> {
    gateway.front.pricing.take(async || gateway.handle.ask(|core, _| core.pricing()).await).await
}

pub(super) async fn quote(
    State(gateway): State<Gateway>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Json<Quote>, Refusal> {
    let Query(pairs) = query.map_err(|_| ApiError::malformed_body("the query cannot be read"))?;
    let QuoteQuery { model, prompt_tokens, max_tokens } = QuoteQuery::read(&pairs)?;
    let unknown = ApiError::model_not_found(&model);
    let quote = gateway.handle.ask(move |core, _| core.quote(model, prompt_tokens, max_tokens)).await?;
    Ok(Json(quote.ok_or(unknown)?))
}

/// What is to be quoted.
#[derive(Debug, PartialEq, Eq)]
struct QuoteQuery {
    model: ModelId,
    prompt_tokens: TokenCount,
    max_tokens: Option<TokenCount>,
}

impl QuoteQuery {
    /// Reads a query, within the bounds that a chat request has.
    ///
    /// A word that is not known is refused: a misspelt `max_tokens` would else quote another request.
    fn read(pairs: &[(String, String)]) -> Result<Self, ApiError> {
        let (mut model, mut prompt_tokens, mut max_tokens) = (None, None, None);
        for (key, value) in pairs {
            let value = value.as_str();
            match key.as_str() {
                "model" => once(&mut model, key, named(value)?)?,
                "prompt_tokens" => once(&mut prompt_tokens, key, count(key, value, 0)?)?,
                "max_tokens" => once(&mut max_tokens, key, count(key, value, 1)?)?,
                _ => return Err(expected("query", "`model`, `prompt_tokens` and `max_tokens` alone")),
            }
        }
        let model = model.ok_or_else(|| ApiError {
            code: Some("missing_required_parameter"),
            ..expected("model", "the name of a model")
        })?;
        Ok(Self { model, prompt_tokens: prompt_tokens.unwrap_or(TokenCount::ZERO), max_tokens })
    }
}

fn once<T>(place: &mut Option<T>, name: &str, value: T) -> Result<(), ApiError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(expected(name, "one value")),
    }
}

/// A text that cannot be a model's name names no model, as in a chat request; it is not repeated.
fn named(text: &str) -> Result<ModelId, ApiError> {
    text.parse().map_err(|error| ApiError {
        param: Some("model".to_owned()),
        code: Some("model_not_found"),
        message: format!("there is no such model: {error}"),
        ..ApiError::not_found("model")
    })
}

fn count(name: &str, text: &str, least: u32) -> Result<TokenCount, ApiError> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let count = u32::from_str(text).ok().filter(|&count| digits && count >= least);
    let count =
        count.ok_or_else(|| expected(name, format_args!("a whole number from {least} to {}", u32::MAX)))?;
    Ok(TokenCount::new(count.into()))
}

fn expected(name: &str, what: impl fmt::Display) -> ApiError {
    ApiError::invalid_request(name, format!("invalid `{name}`: expected {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<QuoteQuery, ApiError> {
        let pairs: Vec<_> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        QuoteQuery::read(
            &pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect::<Vec<_>>(),
        )
    }

    #[test]
    fn a_quote_is_asked_for_in_the_words_of_a_chat_request() {
        let asked = read("model=qwen3-8b&max_tokens=7&prompt_tokens=0").unwrap();
        assert_eq!(asked.model.as_str(), "qwen3-8b");
        assert_eq!((asked.prompt_tokens, asked.max_tokens), (TokenCount::ZERO, Some(TokenCount::new(7))));
        assert_eq!(read("model=ram-demo").unwrap().max_tokens, None);
    }

    #[test]
    fn what_cannot_be_quoted_is_refused_by_name() {
        let check = |query: &str, status: u16, param: &str| {
            let error = read(query).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (status, Some(param)), "{query}");
        };
        check("max_tokens=7", 400, "model");
        check("model=a/b/c", 404, "model");
        check("model=a&model=b", 400, "model");
        for bad in ["0", "-1", "+1", "1.0", "4294967296", "", " 1"] {
            check(&format!("model=a&max_tokens={bad}"), 400, "max_tokens");
        }
        check("model=a&prompt_tokens=x", 400, "prompt_tokens");
        check("model=a&max_token=7", 400, "query");
    }
}
