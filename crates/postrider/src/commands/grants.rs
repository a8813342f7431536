//! `grants`: the SQL that gives a role what it needs, and no more.

use std::io::{self, Write};

use postrider_postgres::{Group, Schema, grants_sql, revokes_sql};

use crate::cli::{Grants, GroupName};

/// Prints the SQL; needs no database.
///
/// # Errors
/// When the output cannot be written.
pub(crate) fn grants(arguments: &Grants, schema: &Schema, out: &mut dyn Write) -> io::Result<()> {
    let sql = if arguments.revoke {
        revokes_sql(&arguments.role, schema)
    } else {
        let group = match arguments.group {
            GroupName::Producer => Group::Producer {
                insert: arguments.insert,
            },
            GroupName::Relay => Group::Relay,
            GroupName::Operator => Group::Operator,
        };
        grants_sql(group, &arguments.role, schema)
    };
    out.write_all(sql.as_bytes())
}
