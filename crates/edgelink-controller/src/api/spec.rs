//! The OpenAPI document, made from the handlers. What every operation has in common is added here, so that no handler
//! can forget it.

use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, header};
use serde_json::{Value, json};
use std::sync::OnceLock;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "EdgeLink controller",
        description = "Administration of an EdgeLink mesh VPN. `/api/v1/network/…` answers like `/api/v1/networks/…`. \
                       Lists are JSON arrays; `X-Total-Count` says how many entries there are, `Link` with rel=\"next\" \
                       where the next page is. Errors are `application/problem+json`; `code` is the protocol's error code.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    components(schemas(edgelink_api::rest::Problem)),
    tags(
        (name = "auth", description = "Logging in and out"),
        (name = "networks", description = "Virtual networks"),
        (name = "nodes", description = "Nodes"),
        (name = "routes", description = "Subnets behind nodes"),
        (name = "servers", description = "Relays and STUN servers"),
        (name = "tokens", description = "Auth keys and revocations"),
        (name = "admins", description = "Administrators"),
        (name = "audit", description = "Who did what"),
        (name = "latency", description = "Measured times and best paths"),
        (name = "settings", description = "Settings"),
        (name = "stats", description = "Numbers"),
    )
)]
struct Base;

/// The document without its paths.
pub(super) fn base() -> Document {
    Base::openapi()
}

/// This document.
#[utoipa::path(
    get, path = "/api/v1/openapi.json", tag = "stats", operation_id = "openapi",
    responses((status = 200, description = "OpenAPI 3.1", body = Object))
)]
pub(super) async fn serve() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| document().to_string());
    let mut response = text.as_str().into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The whole document.
pub(super) fn document() -> Value {
    let mut guarded = super::guarded();
    let mut open = super::open();
    let open_paths: Vec<String> = open.get_openapi().paths.paths.keys().cloned().collect();
    let document = open.to_openapi().merge_from(guarded.to_openapi());
    let mut document = serde_json::to_value(&document).unwrap_or_default();
    document["components"]["securitySchemes"] = json!({
        "admin_token": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
            "description": "From POST /api/v1/auth/login." }
    });
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    for (path, item) in paths {
        let guarded = !open_paths.contains(path);
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            complete(path, method, operation, guarded);
        }
    }
    bound_integers(&mut document);
    document
}

/// Adds security, the errors that any such operation can end in, and the headers of lists.
fn complete(path: &str, method: &str, operation: &mut Value, guarded: bool) {
    let has_body = operation.get("requestBody").is_some();
    let parameters = operation.get("parameters").and_then(Value::as_array).cloned().unwrap_or_default();
    let has = |name: &str| parameters.iter().any(|parameter| parameter["name"] == name);
    let changes = method != "get" && guarded;
    let mut errors =
        vec![(500, "Something failed inside"), (503, "The database does not answer, or too much is asked")];
    if guarded {
        operation["security"] = json!([{ "admin_token": [] }]);
        errors.push((401, "No good admin_token"));
    }
    if has_body || !parameters.is_empty() {
        errors.push((400, "Malformed"));
    }
    if path.contains('{') || has("network") || (changes && has_body) {
        errors.push((404, "There is no such thing"));
    }
    if changes {
        errors.push((409, "Exists already, or is still needed"));
    }
    if has_body {
        errors.extend([(408, "The body took too long"), (413, "Too large"), (415, "Not JSON")]);
    }
    if has_body || has("since") || has("cidr") {
        errors.push((422, "A value is not acceptable"));
    }
    if has("If-Match") {
        errors.push((412, "Changed meanwhile"));
    }
    if path.starts_with("/api/v1/admins/") && has_body {
        errors.push((429, "Too many attempts"));
    }
    for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
        if parameter["in"] == "path" {
            parameter["example"] = 1.into();
        }
    }
    let problem = json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
    for (status, description) in errors {
        let slot = &mut operation["responses"][status.to_string()];
        if slot.is_null() {
            *slot = json!({ "description": description, "content": problem });
        }
    }
    if has("limit") {
        operation["responses"]["200"]["headers"] = json!({
            "X-Total-Count": { "description": "Entries of all pages", "required": true,
                "schema": { "type": "integer", "minimum": 0 } },
            "Link": { "description": "`<…>; rel=\"next\"` when there are more", "schema": { "type": "string" } },
        });
    }
}

/// Ids and counts are unsigned 32-bit numbers, for which OpenAPI has no format.
fn bound_integers(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("format").is_some_and(|format| format == "int32") {
                map.insert("format".to_owned(), "int64".into());
                map.entry("maximum").or_insert_with(|| u32::MAX.into());
            }
            map.values_mut().for_each(bound_integers);
        }
        Value::Array(items) => items.iter_mut().for_each(bound_integers),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract under version control: a change of the API shows in review. To accept one:
    /// `EDGELINK_UPDATE_OPENAPI=1 cargo test -p edgelink-controller openapi`.
    #[test]
    fn the_document_is_the_one_on_record() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let now = format!("{:#}\n", document());
        if std::env::var_os("EDGELINK_UPDATE_OPENAPI").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let recorded = std::fs::read_to_string(path).unwrap();
        assert!(
            recorded == now,
            "the API has changed; if it should, run with EDGELINK_UPDATE_OPENAPI=1 and commit {path}"
        );
    }

    #[test]
    fn everything_but_the_login_and_the_document_needs_a_token() {
        let document = document();
        let mut open = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                if operation.get("security").is_none() {
                    open.push(format!("{method} {path}"));
                }
            }
        }
        assert_eq!(open, ["post /api/v1/auth/login", "get /api/v1/openapi.json"]);
    }
}
