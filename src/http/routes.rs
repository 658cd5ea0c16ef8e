//! All routes: method, path, the scope that a caller needs, and what answers.
//!
//! A handler's first argument is the [`Caller`] with its scope, and only [`route`] can make one. So a route's scope and its
//! handler's cannot differ.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodFilter;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::access::{Caller, NeededScope};
use super::options::Scope;
use super::problem::Problem;
use super::{App, demo, detectors, jobs, openapi, rekognition, review, screen, verdicts};
use crate::telemetry::metrics;

/// What a handler answers.
pub type Answer = Result<Response, Problem>;

type Handler = Box<dyn Fn(Arc<App>, Request) -> BoxFuture<'static, Answer> + Send + Sync>;

/// One route.
pub struct Route {
    pub method: Method,
    pub path: &'static str,
    /// Any of these scopes is enough. Empty: everyone may ask.
    pub scopes: &'static [Scope],
    handler: Handler,
}

/// All routes.
pub fn table() -> Vec<Route> {
    vec![
        route(Method::POST, "/v1/screen", screen::screen),
        route(Method::POST, "/v1/jobs", jobs::queue),
        route(Method::GET, "/v1/verdicts/{job_id}", verdicts::of_job),
        route(Method::GET, "/v1/verdicts", verdicts::of_image),
        route(Method::GET, "/v1/review", review::open),
        route(Method::POST, "/v1/claims", review::claim),
        route(Method::POST, "/v1/decisions", review::decide),
        route(Method::POST, "/v1/reports", review::report),
        route(Method::GET, "/v1/detectors", detectors::loaded),
        open(Method::GET, "/openapi.json", openapi::document),
        open(Method::GET, "/open", demo::open),
        open(Method::GET, "/", demo::page),
        open(Method::GET, "/assets/{name}", demo::asset),
        // Its callers sign their requests, and the signature covers the body.
        open(Method::POST, "/", rekognition::answer),
    ]
}

/// A route for callers with the scope `S`.
fn route<S: NeededScope, F>(method: Method, path: &'static str, handler: fn(Arc<App>, Caller<S>, Request) -> F) -> Route
where
    F: Future<Output = Answer> + Send + 'static,
{
    let answer = move |app: Arc<App>, request: Request| {
        let identity = app.access.recognise(request.method(), request.headers());
        match identity.and_then(Caller::<S>::new) {
            Ok(caller) => handler(app, caller, request).boxed(),
            Err(problem) => futures_util::future::ready(Err(problem)).boxed(),
        }
    };
    Route { method, path, scopes: S::ANY_OF, handler: Box::new(answer) }
}

/// A route for everyone.
fn open<F>(method: Method, path: &'static str, handler: fn(Arc<App>, Request) -> F) -> Route
where
    F: Future<Output = Answer> + Send + 'static,
{
    Route { method, path, scopes: &[], handler: Box::new(move |app, request| handler(app, request).boxed()) }
}

/// The router of all routes.
pub(super) fn router(app: &Arc<App>) -> Router {
    let mut router = Router::new();
    for route in table() {
        let (app, route) = (Arc::clone(app), Arc::new(route));
        let Ok(filter) = MethodFilter::try_from(route.method.clone()) else { continue };
        let path = route.path;
        let answer = move |request: Request| answer(Arc::clone(&app), Arc::clone(&route), request);
        router = router.route(path, axum::routing::on(filter, answer));
    }
    let nothing = || async { secured(Problem::not_found("there is nothing at this path").into_response()) };
    let other_method = || async {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        secured(Problem::new(status, "method_not_allowed", "this path does not take this method").into_response())
    };
    router.fallback(nothing).method_not_allowed_fallback(other_method)
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id of a request that is taken over from its sender.
const MAX_REQUEST_ID_CHARS: usize = 100;

/// Answers one request, and counts it.
async fn answer(app: Arc<App>, route: Arc<Route>, request: Request) -> Response {
    let id = request_id(&request);
    let began = Instant::now();
    let answer = (route.handler)(app, request).await;
    if let Err(problem) = &answer {
        let (status, code) = (problem.status().as_u16(), problem.code());
        tracing::info!(route = route.path, status, code, detail = problem.detail(), request = id, "request refused");
    }
    let mut response = answer.into_response();
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    count(&route, response.status(), began.elapsed());
    secured(response)
}

fn count(route: &Route, status: StatusCode, took: Duration) {
    metrics::http_answered(route.path, status.as_u16(), took);
}

/// The sender's id of a request, or a fresh one.
fn request_id(request: &Request) -> String {
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    given.filter(|id| is_request_id(id)).map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// Whether a text can be the id of a request.
pub(super) fn is_request_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= MAX_REQUEST_ID_CHARS && id.bytes().all(|b| b.is_ascii_graphic())
}

/// Adds what keeps browsers from using an answer in another way than meant.
fn secured(mut response: Response) -> Response {
    const HEADERS: [(HeaderName, &str); 6] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
