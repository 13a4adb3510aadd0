//! `/openapi.json`: the description of every path here, for programs that read such.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use ram_proto::openapi;

/// It says the same for as long as the process lives.
static DOCUMENT: LazyLock<Bytes> =
    LazyLock::new(|| openapi::document(env!("CARGO_PKG_VERSION")).to_string().into());

pub(super) async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.clone())
}
