//! CloudEvents in HTTP's binary mode: attributes in `ce-*` headers, the data in the body. Not every
//! log keeps headers, so the event goes there in the structured mode, as one JSON object.

use axum::http::{HeaderMap, HeaderName, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use traqq_core::decode;
use traqq_core::error::ErrorLine;

const PREFIX: &str = "ce-";
const SPEC_VERSION: HeaderName = HeaderName::from_static("ce-specversion");

/// What the headers say of one event.
#[derive(Clone)]
pub struct Attributes {
    members: Map<String, Value>,
    is_json: bool,
}

impl Attributes {
    /// `None` when the request is no CloudEvent in binary mode.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, ErrorLine> {
        if !headers.contains_key(SPEC_VERSION) {
            return Ok(None);
        }
        let mut members = Map::new();
        for (name, value) in headers {
            let Some(attribute) = name.as_str().strip_prefix(PREFIX) else { continue };
            if matches!(attribute, "data" | "data_base64" | "event") {
                return Err(format!("{name}: there is no attribute of this name in CloudEvents").into());
            }
            let text = unescape(value.as_bytes()).ok_or_else(|| format!("{name} is not UTF-8"))?;
            members.insert(attribute.to_owned(), text.into());
        }
        if !members.contains_key("type") {
            return Err("a CloudEvent has a type: send the header ce-type".into());
        }
        let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
        if let Some(content_type) = content_type {
            members.insert("datacontenttype".to_owned(), content_type.into());
        }
        let media_type = content_type.map(|text| text.split(';').next().unwrap_or_default().to_ascii_lowercase());
        Ok(Some(Self { members, is_json: media_type.is_none_or(|text| text.contains("json")) }))
    }

    /// The whole event as one object.
    pub fn with_data(self, body: &[u8]) -> Result<Vec<u8>, ErrorLine> {
        let Self { mut members, is_json } = self;
        if body.is_empty() {
            return Ok(Value::Object(members).to_string().into_bytes());
        }
        if !is_json {
            members.insert("data_base64".to_owned(), STANDARD.encode(body).into());
            return Ok(Value::Object(members).to_string().into_bytes());
        }
        let data = std::str::from_utf8(body)
            .map_err(|error| ErrorLine::of(format!("the data is not UTF-8: {error}"), error))?;
        if decode::validate(data).is_err() {
            return Err("the data is not one JSON value, as its Content-Type says".into());
        }
        // As it stands: parsed and written again, numbers would not be what they were.
        let attributes = Value::Object(members).to_string();
        let attributes = attributes.strip_suffix('}').expect("an object ends so");
        Ok(format!("{attributes},\"data\":{data}}}").into_bytes())
    }
}

/// Undoes the percent-encoding of the HTTP binding.
fn unescape(value: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, tail)) = rest.split_first() {
        let digit = |at: usize| tail.get(at).and_then(|digit| (*digit as char).to_digit(16));
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(headers: &[(&'static str, &str)], body: &[u8]) -> Result<Option<String>, ErrorLine> {
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let Some(attributes) = Attributes::of(&headers.collect())? else { return Ok(None) };
        attributes.with_data(body).map(|bytes| Some(String::from_utf8(bytes).unwrap()))
    }

    #[test]
    fn binary_mode_becomes_structured() {
        let made =
            [("ce-specversion", "1.0"), ("ce-type", "com.shop.caf%C3%A9%20%"), ("content-type", "application/json")];
        let found = event(&made, br#"{"amount": 1.10}"#).unwrap().unwrap();
        let value: Value = serde_json::from_str(&found).unwrap();
        assert_eq!(value["type"], "com.shop.café %");
        assert!(found.ends_with(r#""data":{"amount": 1.10}}"#), "{found}");
        let text = [("ce-specversion", "1.0"), ("ce-type", "t"), ("content-type", "text/plain")];
        assert!(event(&text, b"hi").unwrap().unwrap().contains(r#""data_base64":"aGk=""#));
        assert!(!event(&text, b"").unwrap().unwrap().contains("data_base64"));
        assert_eq!(event(&made[1..], b"{}"), Ok(None));
        assert!(event(&made[..1], b"{}").unwrap_err().to_string().contains("ce-type"));
        assert!(event(&made, b"{} {}").unwrap_err().to_string().contains("not one JSON value"));
    }
}
