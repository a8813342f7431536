//! The SQL that makes a group role and gives it what it needs, for the owner of the outbox to run.

use std::fmt::Write as _;

use crate::error::Error;
use crate::rights::{Group, On, Right};
use crate::schema_name::Schema;

/// The name of a role: 1 to 63 bytes, as PostgreSQL keeps them, without control characters, and none that PostgreSQL
/// reserves (`public`, `none`, and what begins with `pg_`). Capitals, spaces and quotes are all right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleName(String);

impl RoleName {
    /// Checks the name.
    ///
    /// # Errors
    /// [`Error::RoleName`] when it is not such a name.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        let reserved = name.starts_with("pg_") || name == "public" || name == "none";
        // A longer name would be cut by the server, and be another's.
        let fits = (1..=63).contains(&name.len());
        if fits && !reserved && !name.contains(char::is_control) {
            Ok(Self(name))
        } else {
            Err(Error::RoleName(name))
        }
    }

    fn identifier(&self) -> String {
        format!("\"{}\"", self.0.replace('"', "\"\""))
    }

    /// A literal that reads the same whatever `standard_conforming_strings` is.
    fn literal(&self) -> String {
        let quoted = self.0.replace('\'', "''");
        if quoted.contains('\\') {
            format!("E'{}'", quoted.replace('\\', "\\\\"))
        } else {
            format!("'{quoted}'")
        }
    }
}

/// The SQL that makes the role, without a login, if it is not there, and grants it what the group needs. It may be
/// run again, and takes nothing away: a role may be granted several groups' rights.
#[must_use]
pub fn grants_sql(group: Group, role: &RoleName, schema: &Schema) -> String {
    let name = role.identifier();
    let mut sql = format!(
        "-- What {} of the outbox in schema {schema} may do. Run this as the owner of the outbox, who may also create\n\
         -- roles, or where the role is there already. Then make a member of it who logs in: GRANT {name} TO ...;\n",
        match group {
            Group::Producer { .. } => "a producer",
            Group::Relay => "a relay",
            Group::Operator => "an operator",
        },
    );
    let tag = dollar_quote(role);
    let _ = write!(
        sql,
        "DO {tag}\n\
         BEGIN\n    \
             IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {}) THEN\n        \
                 CREATE ROLE {name} NOLOGIN;\n    \
             END IF;\n\
         END\n\
         {tag};\n\
         GRANT USAGE ON SCHEMA {schema} TO {name};\n",
        role.literal(),
    );
    for right in merged(group.rights()) {
        let _ = writeln!(sql, "GRANT {} TO {name};", right.sql(schema));
    }
    sql
}

/// The SQL that takes every right in the schema of the outbox from the role, and leaves the role. It may be run again.
#[must_use]
pub fn revokes_sql(role: &RoleName, schema: &Schema) -> String {
    let name = role.identifier();
    // Of a table, that takes the rights on its columns too.
    [
        "TABLES IN SCHEMA",
        "SEQUENCES IN SCHEMA",
        "FUNCTIONS IN SCHEMA",
    ]
    .map(|all| format!("REVOKE ALL ON ALL {all} {schema} FROM {name};\n"))
    .concat()
        + &format!("REVOKE ALL ON SCHEMA {schema} FROM {name};\n")
}

/// What the name of the role cannot end.
fn dollar_quote(role: &RoleName) -> String {
    let mut tag = "postrider".to_owned();
    while role.0.contains(&tag) {
        tag.push('_');
    }
    format!("${tag}$")
}

/// Rights on one object, as they are granted in one statement.
struct Granted {
    privileges: Vec<String>,
    object: On,
}

impl Granted {
    fn sql(&self, schema: &Schema) -> String {
        let privileges = self.privileges.join(", ");
        match self.object {
            On::Table(table) | On::Columns(table, _) => {
                format!("{privileges} ON {schema}.{table}")
            }
            On::Function(name, parameters) => {
                format!("{privileges} ON FUNCTION {schema}.{name}({parameters})")
            }
        }
    }
}

fn merged(rights: Vec<Right>) -> Vec<Granted> {
    let mut granted: Vec<Granted> = Vec::new();
    for right in rights {
        let privilege = match right.on {
            On::Columns(_, columns) => format!("{} ({})", right.privilege, columns.join(", ")),
            On::Table(_) | On::Function(..) => right.privilege.to_owned(),
        };
        let same = granted
            .last_mut()
            .filter(|last| right.on.table().is_some() && last.object.table() == right.on.table());
        match same {
            Some(last) => last.privileges.push(privilege),
            None => granted.push(Granted {
                privileges: vec![privilege],
                object: right.on,
            }),
        }
    }
    granted
}

impl On {
    fn table(self) -> Option<&'static str> {
        match self {
            Self::Table(table) | Self::Columns(table, _) => Some(table),
            Self::Function(..) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(group: Group, role: &str) -> String {
        let role = RoleName::new(role).unwrap();
        grants_sql(group, &role, &Schema::new("mail").unwrap())
    }

    #[test]
    fn a_name_that_the_server_would_cut_or_refuse_is_refused() {
        for name in [
            "",
            "pg_relay",
            "public",
            "none",
            "a\nb",
            "a\0b",
            &"é".repeat(32),
        ] {
            assert!(RoleName::new(name).is_err(), "{name:?}");
        }
        for name in ["relay", "Relay of \"shop\"", "it's", "é", &"a".repeat(63)] {
            assert!(RoleName::new(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn a_name_ends_neither_its_identifier_nor_its_literal_nor_the_block_it_stands_in() {
        let sql = grants(Group::Relay, "a\"; DROP $postrider$ 'x' \\");
        assert!(
            sql.contains("TO \"a\"\"; DROP $postrider$ 'x' \\\";"),
            "{sql}"
        );
        assert!(
            sql.contains("rolname = E'a\"; DROP $postrider$ ''x'' \\\\'"),
            "{sql}"
        );
        assert!(sql.contains("DO $postrider_$"), "{sql}");
    }

    #[test]
    fn a_producer_is_granted_no_table_unless_it_inserts() {
        let calls = grants(Group::Producer { insert: false }, "shop");
        assert!(!calls.contains("mail.messages"), "{calls}");
        assert_eq!(calls.matches("ON FUNCTION mail.publish(").count(), 4);
        let inserts = grants(Group::Producer { insert: true }, "shop");
        assert!(inserts.contains("GRANT INSERT (id, "), "{inserts}");
        assert!(!inserts.contains("outbox."), "{inserts}");
    }
}
