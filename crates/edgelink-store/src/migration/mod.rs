//! The schema's history. A migration that was released is never edited; a new one is appended.
//!
//! MariaDB cannot undo DDL: a migration may be cut off after any statement and is then run again from its beginning, so all but
//! the first must be repeatable (`if_not_exists`, `has_column`). `upgrade_tests` does that to each.

mod m0001_initial;
mod m0003_lease;
mod m0005_routes;
mod m0008_controllers;

use sea_orm_migration::{MigrationTrait, MigratorTraitSelf};

/// The migrations of one build, oldest first. The schema's version is how many of them a database has.
pub(crate) struct Migrator {
    make: fn() -> Vec<Box<dyn MigrationTrait>>,
}

impl Migrator {
    /// This build's.
    pub(crate) const CURRENT: Self = Self {
        make: || {
            vec![
                Box::new(m0001_initial::Migration),
                Box::new(m0003_lease::Migration),
                Box::new(m0005_routes::Migration),
                Box::new(m0008_controllers::Migration),
            ]
        },
    };

    /// Another history, for the tests of upgrades.
    #[cfg(test)]
    pub(crate) const fn with(make: fn() -> Vec<Box<dyn MigrationTrait>>) -> Self {
        Self { make }
    }

    /// Their names, oldest first.
    pub(crate) fn names(&self) -> Vec<String> {
        (self.make)().iter().map(|m| m.name().to_owned()).collect()
    }
}

impl MigratorTraitSelf for Migrator {
    fn migrations(&self) -> Vec<Box<dyn MigrationTrait>> {
        (self.make)()
    }
}
