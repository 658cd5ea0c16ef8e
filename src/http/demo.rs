//! The demo page: drop a picture, see what is decided and why. And the link that opens it.

use std::sync::Arc;

use axum::RequestExt;
use axum::extract::{Path, Request};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Redirect};

use super::App;
use super::access::SESSION_COOKIE;
use super::problem::Problem;
use super::routes::Answer;

const PAGE: &str = include_str!("demo/page.html");
/// The files that the page loads: name, content type and content.
const ASSETS: [(&str, &str, &str); 2] = [
    ("demo.css", "text/css; charset=utf-8", include_str!("demo/demo.css")),
    ("demo.js", "text/javascript; charset=utf-8", include_str!("demo/demo.js")),
];

/// The page itself says nothing of any image, so that everyone may load it.
pub(super) async fn page(_app: Arc<App>, _request: Request) -> Answer {
    Ok(([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE).into_response())
}

pub(super) async fn asset(_app: Arc<App>, mut request: Request) -> Answer {
    let name = request.extract_parts::<Path<String>>().await.map(|Path(name)| name).unwrap_or_default();
    match ASSETS.iter().find(|(known, ..)| *known == name) {
        Some((_, content_type, content)) => Ok(([(header::CONTENT_TYPE, *content_type)], *content).into_response()),
        None => Err(Problem::not_found("there is no such file")),
    }
}

/// Opens the session of the printed link.
pub(super) async fn open(app: Arc<App>, request: Request) -> Answer {
    // A preview of the link must not use it up.
    if *request.method() != Method::GET {
        return Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "open the link with GET"));
    }
    let query = request.uri().query().unwrap_or_default();
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    let token = pairs.find(|(name, _)| name == "token").map(|(_, token)| token.into_owned()).unwrap_or_default();
    let session = app.access.open_link(request.headers(), &token)?;
    let cookie = format!("{SESSION_COOKIE}={session}; Path=/; HttpOnly; SameSite=Lax");
    let cookie = HeaderValue::from_str(&cookie)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "cookie", error.to_string()))?;
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response())
}
