//! A conversation, and how a model wants to read it.

pub mod calls;
pub mod reasoning;
pub mod template;
pub mod tools;

use std::fmt;

use serde::{Deserialize, Serialize};

use tools::ToolCall;

/// Words of a user or a model. `Debug` shows their length only, so that no log ever holds them.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PromptText(String);

impl PromptText {
    /// Wraps words.
    #[must_use]
    pub const fn new(words: String) -> Self {
        Self(words)
    }

    /// The words.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The words, taken out.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }
}

impl From<String> for PromptText {
    fn from(words: String) -> Self {
        Self(words)
    }
}

impl From<&str> for PromptText {
    fn from(words: &str) -> Self {
        Self(words.to_owned())
    }
}

impl fmt::Debug for PromptText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sets the scene. OpenAI's `developer` is read as this.
    System,
    /// Asks.
    User,
    /// Answers.
    Assistant,
    /// Tells what a call of a function gave.
    Tool,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: PromptText,
    /// The speaker's name, where there are several of one role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<PromptText>,
    /// Functions that the assistant called in this turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result this is, in a turn of [`Role::Tool`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<PromptText>,
}

impl ChatMessage {
    /// A turn without a name.
    #[must_use]
    pub fn new(role: Role, content: impl Into<PromptText>) -> Self {
        Self { role, content: content.into(), name: None, tool_calls: Vec::new(), tool_call_id: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_word_of_a_prompt() {
        let message = ChatMessage::new(Role::User, "the secret plan");
        assert!(!format!("{message:?}").contains("secret"));
    }
}
