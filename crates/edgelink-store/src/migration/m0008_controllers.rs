//! Where the controllers of this database are (ADR 0017).

use sea_orm_migration::prelude::*;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0008_controllers"
    }
}

#[async_trait::async_trait]
#[expect(elided_lifetimes_in_paths, reason = "the trait elides it, and async_trait makes that matter")]
impl MigrationTrait for Migration {
    /// Repeatable: MariaDB may have been cut off anywhere.
    async fn up(&self, schema: &SchemaManager) -> Result<(), DbErr> {
        let table = Table::create()
            .table("controllers")
            .if_not_exists()
            // The longest that an index of MariaDB takes in any row format.
            .col(ColumnDef::new("url").string_len(190).not_null().primary_key())
            .col(ColumnDef::new("seen_at").big_integer().not_null())
            .take();
        schema.create_table(table).await
    }
}
