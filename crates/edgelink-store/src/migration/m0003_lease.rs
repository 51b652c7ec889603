//! Which of several controllers is the active one (DESIGN §4).

use sea_orm_migration::prelude::*;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0003_lease"
    }
}

#[async_trait::async_trait]
#[expect(elided_lifetimes_in_paths, reason = "the trait elides it, and async_trait makes that matter")]
impl MigrationTrait for Migration {
    /// Repeatable: MariaDB may have been cut off anywhere.
    async fn up(&self, schema: &SchemaManager) -> Result<(), DbErr> {
        let table = Table::create()
            .table("controller_lease")
            .if_not_exists()
            .col(ColumnDef::new("id").integer().not_null().primary_key())
            .col(ColumnDef::new("holder").string_len(64).not_null().default(""))
            .col(ColumnDef::new("url").string_len(1024).not_null().default(""))
            .col(ColumnDef::new("epoch").big_integer().not_null().default(0i64))
            .col(ColumnDef::new("expires_at").big_integer().not_null().default(0i64))
            .take();
        schema.create_table(table).await?;
        let row = Query::insert()
            .into_table("controller_lease")
            .columns(["id"])
            .values_panic([1.into()])
            .on_conflict(OnConflict::column("id").do_nothing_on(["id"]).to_owned())
            .take();
        schema.get_connection().execute(&row).await?;
        Ok(())
    }
}
