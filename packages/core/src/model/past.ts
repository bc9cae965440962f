import type {
  Blocks,
  Compressor,
  LayerPast,
  Rows,
  Visible,
} from '../layers/context';
import {
  type Blocking,
  blockCount,
  leaderCount,
  Sequences,
} from '../sequences';
import type { Tensor } from '../tensor';
import { type Batch, runningSum } from './batch';

/** The past of sequences that begin with this call: nothing is kept. */
export class NoPast implements LayerPast {
  constructor(private readonly batch: Batch) {}

  extend<R extends Rows>(_part: string, rows: R): Visible<R> {
    return freshRows(this.batch, rows);
  }

  compress<From extends Rows, To extends Rows>(
    _part: string,
    visible: Visible<From>,
    blocking: Blocking,
    compressor: Compressor<From, To>,
  ): Blocks<To> {
    const counts = this.batch.counts.map((n) => blockCount(n, blocking));
    const rows = compressor(
      visible.rows,
      packedBlocks(this.batch, blocking),
      this.batch.indices('positions', () => this.batch.positions),
      this.batch.indices(`fresh blocks ${keyOf(blocking)}`, () =>
        counts.flatMap((count) =>
          Array.from({ length: count }, (_, b) => b * blocking.stride),
        ),
      ),
    );
    return { rows, starts: runningSum(counts) };
  }

  sequences(
    visible: Visible<Rows>,
    blocks?: Blocks<Rows>,
    sharing = 1,
  ): Sequences {
    return layOut(this.batch, visible, blocks, sharing);
  }

  previousLeaders(): undefined {}
  rememberLeaders(): void {}
  state(): undefined {}
  rememberState(_state: Tensor): void {}
}

/** New rows as all the rows there are. */
export function freshRows<R extends Rows>(batch: Batch, rows: R): Visible<R> {
  return {
    rows,
    key: 'fresh',
    starts: batch.starts,
    counts: () => batch.counts,
    compact: true,
    rowOf: (sequence, position) => (batch.starts[sequence] ?? 0) + position,
  };
}

/** The queries of a batch over visible rows and block rows. */
export function layOut(
  batch: Batch,
  visible: Visible<Rows>,
  blocks: Blocks<Rows> | undefined,
  sharing: number,
): Sequences {
  const { starts } = visible;
  const blockStarts = blocks?.starts ?? [];
  const key = [visible.key, blockStarts, sharing].join(';');
  return batch.layout(key, () => {
    const counts = visible.counts();
    const leaders = runningSum(
      batch.counts.map((count, s) =>
        leaderCount((counts[s] ?? 0) - count, count, sharing),
      ),
    );
    return new Sequences(
      batch.counts.map((queryCount, s) => ({
        queryStart: batch.starts[s] ?? 0,
        queryCount,
        keyStart: starts[s] ?? 0,
        keyCount: counts[s] ?? 0,
        blockStart: blockStarts[s] ?? 0,
        leaderStart: leaders[s] ?? 0,
      })),
    );
  });
}

function packedBlocks(batch: Batch, blocking: Blocking): Sequences {
  return batch.layout(`fresh ${keyOf(blocking)}`, () =>
    Sequences.packed(
      batch.counts.map((queries) => ({ queries })),
      blocking,
    ),
  );
}

function keyOf({ length, stride, sharing }: Blocking): string {
  return `${length}/${stride}/${sharing}`;
}
