//! `GET /openapi.json`: the document of this interface. Tests compare it with the table of routes and with real answers.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::header;
use axum::response::IntoResponse;

use super::App;
use super::routes::Answer;

/// OpenAPI 3.1.
pub const DOCUMENT: &str = include_str!("openapi.json");

pub(super) async fn document(_app: Arc<App>, _request: Request) -> Answer {
    Ok(([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::Value;

    use super::*;
    use crate::http::routes;

    /// Method and path of each operation, and the operation.
    fn operations(document: &Value) -> BTreeMap<(String, String), &Value> {
        let paths = document["paths"].as_object().unwrap().iter();
        let of_path = |(path, item): (&String, &'static str)| (item.to_ascii_uppercase(), path.clone());
        let methods = ["get", "put", "post", "delete", "patch", "head", "options"];
        let found = paths.flat_map(|(path, item)| {
            methods.iter().filter_map(move |method| Some((of_path((path, method)), item.get(method)?)))
        });
        found.collect()
    }

    #[test]
    fn the_document_has_every_route_with_its_scopes_and_no_other() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let operations = operations(&document);
        let routes: BTreeMap<_, _> =
            routes().into_iter().map(|(method, path, scopes)| ((method, path.to_owned()), scopes)).collect();
        let [described, served]: [BTreeSet<_>; 2] =
            [operations.keys().collect(), routes.keys().collect::<BTreeSet<_>>()];
        assert_eq!(described, served, "paths of openapi.json, and paths of routes.rs");
        for (route, scopes) in &routes {
            let operation = operations[route];
            let ways = operation["security"].as_array().unwrap_or_else(|| panic!("{route:?} has no security"));
            // A list in one requirement would mean all of its scopes.
            let by_key: Vec<_> = ways.iter().filter_map(|way| way["key"].as_array()).collect();
            assert!(by_key.iter().all(|scopes| scopes.len() == 1), "{route:?} {ways:?}");
            let by_key: Vec<_> = by_key.iter().map(|scopes| scopes[0].as_str().unwrap()).collect();
            assert_eq!(by_key, scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>(), "{route:?}");
            let by_session = ways.iter().any(|way| way.get("session").is_some());
            assert_eq!(by_session, !scopes.is_empty(), "{route:?}");
            for status in ["401", "403", "421", "429"] {
                let answers = &operation["responses"];
                assert!(scopes.is_empty() || answers.get(status).is_some(), "{route:?} can answer {status}");
            }
            let named = route.1.split('{').skip(1).map(|rest| rest.split('}').next().unwrap());
            for name in named {
                let parameters = operation["parameters"].as_array().unwrap().iter();
                let resolved = parameters.map(|parameter| match parameter["$ref"].as_str() {
                    Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
                    None => parameter,
                });
                let found = resolved.filter(|parameter| parameter["in"] == "path" && parameter["name"] == name);
                assert_eq!(found.count(), 1, "{route:?}: {name}");
            }
        }
    }
}
