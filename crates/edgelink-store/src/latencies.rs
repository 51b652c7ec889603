//! Measured round-trip times, for whoever looks at the database beside a running controller, in whose memory they live.

use crate::entity::{latency, node};
use crate::error::StoreError;
use crate::store::{Store, from_db, id_from_db, id_to_db, to_db};
use edgelink_model::{NetworkId, UnixMillis};
use sea_orm::sea_query::{OnConflict, Query};
use sea_orm::{ActiveValue::Set, ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder};
use std::time::Duration;

/// Figures that were not renewed for so long are not shown, and deleted at the next write.
const FRESHNESS: Duration = Duration::from_secs(90);
/// Rows per statement: both databases limit how many values one binds.
const CHUNK: usize = 100;

/// A round-trip time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencyRecord {
    /// Who measured: `node` or `server`.
    pub src_type: String,
    /// Its row id.
    pub src_id: u32,
    /// To what: `server`.
    pub dst_type: String,
    /// Its row id.
    pub dst_id: u32,
    /// Microseconds.
    pub rtt_us: u64,
    /// Unix ms.
    pub recorded_at: UnixMillis,
}

impl Store {
    /// Keeps a batch of figures, replacing what was known of each pair, and forgets stale ones. Nobody follows them, so
    /// nothing is logged.
    pub async fn write_latencies(&self, batch: &[LatencyRecord]) -> Result<(), StoreError> {
        let writer = self.write().await?;
        let oldest = to_db(writer.now.saturating_sub(FRESHNESS.as_millis() as u64))?;
        latency::Entity::delete_many().filter(latency::Column::RecordedAt.lt(oldest)).exec(&writer.txn).await?;
        for chunk in batch.chunks(CHUNK) {
            let rows = chunk.iter().map(row).collect::<Result<Vec<_>, _>>()?;
            let pair =
                [latency::Column::SrcType, latency::Column::SrcId, latency::Column::DstType, latency::Column::DstId];
            let replace = OnConflict::columns(pair)
                .update_columns([latency::Column::RttUs, latency::Column::RecordedAt])
                .to_owned();
            latency::Entity::insert_many(rows).on_conflict(replace).exec_without_returning(&writer.txn).await?;
        }
        writer.commit().await?;
        Ok(())
    }

    /// Figures of the last 90 s: of one network's nodes and of servers among each other, or all.
    pub async fn latencies(&self, network: Option<NetworkId>) -> Result<Vec<LatencyRecord>, StoreError> {
        let oldest = to_db(self.now().saturating_sub(FRESHNESS.as_millis() as u64))?;
        let mut query = latency::Entity::find().filter(latency::Column::RecordedAt.gte(oldest));
        if let Some(network) = network {
            let members = Query::select()
                .column(node::Column::Id)
                .from(node::Entity)
                .and_where(node::Column::NetworkId.eq(id_to_db(network.0)?))
                .take();
            query = query.filter(
                Condition::any()
                    .add(latency::Column::SrcType.ne("node"))
                    .add(latency::Column::SrcId.in_subquery(members)),
            );
        }
        let ordered = query
            .order_by_asc(latency::Column::SrcType)
            .order_by_asc(latency::Column::SrcId)
            .order_by_asc(latency::Column::DstId);
        ordered.all(&self.db).await?.into_iter().map(record).collect()
    }
}

fn row(record: &LatencyRecord) -> Result<latency::ActiveModel, StoreError> {
    Ok(latency::ActiveModel {
        src_type: Set(record.src_type.clone()),
        src_id: Set(id_to_db(record.src_id)?),
        dst_type: Set(record.dst_type.clone()),
        dst_id: Set(id_to_db(record.dst_id)?),
        rtt_us: Set(to_db(record.rtt_us)?),
        recorded_at: Set(to_db(record.recorded_at)?),
        ..Default::default()
    })
}

fn record(row: latency::Model) -> Result<LatencyRecord, StoreError> {
    Ok(LatencyRecord {
        src_type: row.src_type,
        src_id: id_from_db(row.src_id)?,
        dst_type: row.dst_type,
        dst_id: id_from_db(row.dst_id)?,
        rtt_us: from_db(row.rtt_us)?,
        recorded_at: from_db(row.recorded_at)?,
    })
}
