import type { Backend } from '../backend';
import { bytesPerElement, type FloatType } from '../dtype';
import { ArgumentError } from '../errors';
import type {
  Blocks,
  Compressor,
  LayerPast,
  Rows,
  Visible,
} from '../layers/context';
import { gatherRows } from '../ops/gather-rows';
import { statisticType } from '../ops/operator';
import { scatterRows } from '../ops/scatter-rows';
import { Scope } from '../scope';
import { type Blocking, blockCount, Sequences } from '../sequences';
import { sizeOf, type Tensor } from '../tensor';
import { type Batch, runningSum } from './batch';
import { type LayerStorage, layerStorage } from './cache-layout';
import {
  type AttentionConfig,
  layerAttention,
  type ModelConfig,
} from './config';
import { freshRows, layOut } from './past';

export interface CacheOptions {
  /** Sequences that the cache holds; 1 when left out. */
  readonly slots?: number;
  /** Tokens that each sequence may grow to. */
  readonly capacity: number;
  readonly dtype: FloatType;
  /** Keep only the window of windowed layers; true when left out. */
  readonly ring?: boolean;
}

/** Which slots of a cache the parts of a batch belong to. */
type Slots = readonly number[];

/**
 * Everything that decoding keeps of the past, allocated once: token rows (a
 * ring of w where a layer sees only a window), compressed rows, the last
 * leader's block lists, recurrent states. Each tensor is `[slots * rows, ...]`.
 */
export class Cache {
  readonly slots: number;
  readonly capacity: number;
  readonly dtype: FloatType;
  private readonly layers: readonly LayerCache[];
  private readonly scope: Scope;

  constructor(backend: Backend, config: ModelConfig, options: CacheOptions) {
    const { slots = 1, capacity, dtype, ring = true } = options;
    for (const [name, value] of Object.entries({ slots, capacity })) {
      if (!Number.isSafeInteger(value) || value < 1) {
        throw new ArgumentError(
          `cache: ${name} must be a positive integer, got ${value}`,
        );
      }
    }
    this.slots = slots;
    this.capacity = capacity;
    this.dtype = dtype;
    this.scope = new Scope(backend);
    const build = (attention: AttentionConfig) =>
      new LayerCache(
        this.scope,
        slots,
        layerStorage(attention, { capacity, ring }),
        dtype,
      );
    try {
      this.layers = layerAttention(config).map(build);
    } catch (error) {
      this.scope.free();
      throw error;
    }
  }

  /** Bytes really allocated, by what they hold. */
  get bytes(): Record<'tokens' | 'blocks' | 'leaders' | 'states', number> {
    const total = { tokens: 0, blocks: 0, leaders: 0, states: 0 };
    for (const layer of this.layers) layer.addBytes(total);
    return total;
  }

  /** What layer `layer` knows when `batch` runs on these slots. */
  past(layer: number, scope: Scope, batch: Batch, slots: Slots): LayerPast {
    const cache = this.layers[layer];
    if (!cache)
      throw new ArgumentError(`internal: no cache for layer ${layer}`);
    return new CachedPast(cache, scope, batch, slots);
  }

  /** Makes a slot ready for a new sequence. Rows need no clearing. */
  resetSlot(slot: number): void {
    for (const layer of this.layers) layer.clearState(slot);
  }

  /** Copies one slot onto a slot of a cache of the same shape. */
  copySlot(from: number, target: Cache, to: number): void {
    this.layers.forEach((layer, index) => {
      const other = target.layers[index];
      if (other) layer.copySlot(from, other, to);
    });
  }

  free(): void {
    this.scope.free();
  }
}

/** The tensors of one layer's cache. */
class LayerCache {
  readonly tokens: ReadonlyMap<string, CachedRows>;
  readonly blocks: ReadonlyMap<string, CachedRows>;
  /** i32 `[slots, G, n]` */
  readonly leaders: Tensor | undefined;
  /** `[slots, H, Dk, Dv]` */
  readonly state: Tensor | undefined;

  constructor(
    scope: Scope,
    readonly slots: number,
    readonly storage: LayerStorage,
    dtype: FloatType,
  ) {
    const allocate = (parts: LayerStorage['tokens']) =>
      new Map(
        parts.map(({ part, rows, widths }) => [
          part,
          {
            rows,
            tensors: Object.fromEntries(
              Object.entries(widths).map(([name, width]) => [
                name,
                scope.empty([slots * rows, ...width], dtype),
              ]),
            ),
          },
        ]),
      );
    this.tokens = allocate(storage.tokens);
    this.blocks = allocate(storage.blocks);
    const { leaders, state } = storage;
    this.leaders = leaders && scope.empty([slots, ...leaders], 'i32');
    this.state = state && scope.empty([slots, ...state], statisticType(dtype));
  }

  addBytes(total: Cache['bytes']): void {
    const { tokens, blocks, leaders, states } = this.groups();
    total.tokens += bytesOf(tokens);
    total.blocks += bytesOf(blocks);
    total.leaders += bytesOf(leaders);
    total.states += bytesOf(states);
  }

  clearState(slot: number): void {
    const { state } = this;
    if (!state) return;
    const size = state.size / this.slots;
    const zeros =
      state.dtype === 'f64' ? new Float64Array(size) : new Float32Array(size);
    state.backend.write(state.storage, zeros, slot * size);
  }

  copySlot(from: number, target: LayerCache, to: number): void {
    const targets = Object.values(target.groups()).flat();
    Object.values(this.groups())
      .flat()
      .forEach((tensor, index) => {
        const other = targets[index];
        if (!other) return;
        const size = tensor.size / this.slots;
        tensor.backend.copy(
          tensor.storage,
          from * size,
          other.storage,
          to * size,
          size,
        );
      });
  }

  private groups() {
    const rows = (parts: ReadonlyMap<string, CachedRows>) =>
      [...parts.values()].flatMap(({ tensors }) => Object.values(tensors));
    return {
      tokens: rows(this.tokens),
      blocks: rows(this.blocks),
      leaders: this.leaders ? [this.leaders] : [],
      states: this.state ? [this.state] : [],
    };
  }
}

interface CachedRows {
  /** Rows a slot. */
  readonly rows: number;
  readonly tensors: Rows;
}

/** One layer's cache during one call. */
class CachedPast implements LayerPast {
  constructor(
    private readonly cache: LayerCache,
    private readonly scope: Scope,
    private readonly batch: Batch,
    private readonly slots: Slots,
  ) {}

  extend<R extends Rows>(part: string, rows: R, window?: number): Visible<R> {
    const cached = this.cache.tokens.get(part);
    // A layer that keeps no rows, such as linear attention.
    if (!cached) return freshRows(this.batch, rows);
    const isRing = window !== undefined && cached.rows <= window;
    return isRing
      ? this.extendRing(part, cached, rows)
      : this.extendAll(part, cached, rows);
  }

  /** Every position has its row, so new rows can be read where they lie. */
  private extendAll<R extends Rows>(
    part: string,
    cached: CachedRows,
    rows: R,
  ): Visible<R> {
    const { batch } = this;
    const rowOf = (s: number, position: number) =>
      (this.slots[s] ?? 0) * cached.rows + position;
    this.write(cached, rows, `write ${part} ${cached.rows}`, rowOf);
    if (batch.isFresh) return freshRows(batch, rows);
    return {
      rows: cached.tensors as R,
      key: `all ${cached.rows}`,
      starts: this.slots.map((slot) => slot * cached.rows),
      counts: () =>
        batch.counts.map((count, s) => (batch.pasts[s] ?? 0) + count),
      compact: false,
      rowOf,
    };
  }

  /** Position p lies in row `p mod w`; a chunk is read beside the old rows. */
  private extendRing<R extends Rows>(
    part: string,
    cached: CachedRows,
    rows: R,
  ): Visible<R> {
    const { batch } = this;
    const rowOf = (s: number, position: number) =>
      (this.slots[s] ?? 0) * cached.rows + (position % cached.rows);
    const key = `${part} ${cached.rows}`;
    const chunk =
      batch.isFresh || batch.isDecode
        ? undefined
        : this.besideOld(cached, rows, key, rowOf);
    this.write(cached, rows, `ring ${key}`, rowOf, cached.rows);
    if (batch.isFresh) return freshRows(batch, rows);
    if (chunk) return chunk;
    return {
      rows: cached.tensors as R,
      key: `ring ${cached.rows}`,
      starts: this.slots.map((slot) => slot * cached.rows),
      counts: () => batch.pasts.map((past) => Math.min(past + 1, cached.rows)),
      compact: false,
      rowOf,
    };
  }

  /** The up to w - 1 last old rows in order, then the new ones. */
  private besideOld<R extends Rows>(
    cached: CachedRows,
    rows: R,
    key: string,
    rowOf: (sequence: number, position: number) => number,
  ): Visible<R> {
    const { batch, scope } = this;
    const kept = batch.pasts.map((past) => Math.min(past, cached.rows - 1));
    const counts = batch.counts.map((count, s) => count + (kept[s] ?? 0));
    const starts = runningSum(counts);
    const total = counts.reduce((sum, count) => sum + count, 0);
    const old = kept.flatMap((count, s) =>
      range(count).map((i) => [s, i] as const),
    );
    const from = batch.indices(`old from ${key}`, () =>
      old.map(([s, i]) => rowOf(s, (batch.pasts[s] ?? 0) - (kept[s] ?? 0) + i)),
    );
    const to = batch.indices(`old to ${key}`, () =>
      old.map(([s, i]) => (starts[s] ?? 0) + i),
    );
    const fresh = batch.indices(`new to ${key}`, () =>
      batch.counts.flatMap((count, s) =>
        range(count).map((i) => (starts[s] ?? 0) + (kept[s] ?? 0) + i),
      ),
    );
    const beside = mapRows(rows, (list) =>
      list.map((x) => scope.empty([total, ...x.shape.slice(1)], x.dtype)),
    );
    const before = old.length > 0 ? this.gather(cached.tensors, from) : {};
    scope.runMany(scatterRows, [
      ...writesOf(beside, before, to),
      ...writesOf(beside, rows, fresh),
    ]);
    return {
      rows: beside,
      key: `beside ${cached.rows}`,
      starts,
      counts: () => counts,
      compact: true,
      rowOf: (s, position) =>
        (starts[s] ?? 0) + position - ((batch.pasts[s] ?? 0) - (kept[s] ?? 0)),
    };
  }

  compress<From extends Rows, To extends Rows>(
    part: string,
    visible: Visible<From>,
    blocking: Blocking,
    compressor: Compressor<From, To>,
  ): Blocks<To> {
    const { batch, scope } = this;
    const cached = this.cache.blocks.get(part);
    if (!cached) throw new ArgumentError(`internal: no cached ${part}`);
    const { stride, length, sharing } = blocking;
    // Of each sequence the first block that becomes whole, and their number.
    const before = () => batch.pasts.map((past) => blockCount(past, blocking));
    const key = `${part} ${length}/${stride}/${sharing}`;
    const made = batch.choice(`made ${key}`, () => {
      const first = before();
      return batch.pasts.map(
        (past, s) =>
          blockCount(past + (batch.counts[s] ?? 0), blocking) - (first[s] ?? 0),
      );
    });
    const starts = this.slots.map((slot) => slot * cached.rows);
    if (made.some((count) => count > 0)) {
      const tokens = made.map((n) => (n > 0 ? (n - 1) * stride + length : 0));
      const each = () => {
        const first = before();
        return tokens.flatMap((count, s) =>
          range(count).map((i) => [s, (first[s] ?? 0) * stride + i] as const),
        );
      };
      // Layers of one blocking may keep their rows in different ways.
      const from = batch.indices(`uncompressed ${key} ${visible.key}`, () =>
        each().map(([s, position]) => visible.rowOf(s, position)),
      );
      const news = () => {
        const first = before();
        return made.flatMap((count, s) =>
          range(count).map((i) => [s, (first[s] ?? 0) + i] as const),
        );
      };
      const rows = compressor(
        this.gather(visible.rows, from),
        batch.layout(`uncompressed ${key}`, () =>
          Sequences.packed(
            tokens.map((queries) => ({ queries })),
            blocking,
          ),
        ),
        batch.indices(`uncompressed positions ${key}`, () =>
          each().map(([, position]) => position),
        ),
        batch.indices(`block positions ${key}`, () =>
          news().map(([, b]) => b * stride),
        ),
      );
      const to = batch.indices(`blocks to ${key} ${cached.rows}`, () =>
        news().map(([s, b]) => (starts[s] ?? 0) + b),
      );
      scope.runMany(scatterRows, writesOf(cached.tensors, rows, to));
    }
    return { rows: cached.tensors as To, starts };
  }

  sequences(
    visible: Visible<Rows>,
    blocks?: Blocks<Rows>,
    sharing = 1,
  ): Sequences {
    return layOut(this.batch, visible, blocks, sharing);
  }

  previousLeaders(): Tensor | undefined {
    const { leaders } = this.cache;
    if (!leaders || this.batch.isFresh) return undefined;
    return this.ofSlots(leaders);
  }

  rememberLeaders(
    indices: Tensor,
    sequences: Sequences,
    sharing: number,
  ): void {
    const { cache, batch, scope } = this;
    const { leaders } = cache;
    if (!leaders) return;
    const last = () =>
      batch.indices(`last leaders ${sharing}`, () =>
        sequences.list.map(
          ({ leaderStart, keyCount, queryCount }) =>
            leaderStart +
            Math.floor((keyCount - 1) / sharing) -
            Math.floor((keyCount - queryCount) / sharing),
        ),
      );
    // Of one query a sequence, each has one leader.
    const x = batch.isDecode
      ? indices
      : scope.run(gatherRows, { x: indices, rows: last() }, {}).y;
    const rows = this.slotRows();
    scope.run(scatterRows, { target: leaders, x, rows }, {});
  }

  state(): Tensor | undefined {
    const { state } = this.cache;
    if (!state || this.batch.isFresh) return undefined;
    return this.ofSlots(state);
  }

  rememberState(x: Tensor): void {
    const { state } = this.cache;
    if (!state) return;
    const rows = this.slotRows();
    this.scope.run(scatterRows, { target: state, x, rows }, {});
  }

  /** What a tensor of all slots has of this call's: all, or its rows. */
  private ofSlots(x: Tensor): Tensor {
    const { cache, slots, scope } = this;
    const areAll =
      slots.length === cache.slots && slots.every((slot, i) => slot === i);
    return areAll
      ? x
      : scope.run(gatherRows, { x, rows: this.slotRows() }, {}).y;
  }

  private slotRows(): Tensor {
    return this.batch.indices('slots', () => this.slots);
  }

  /** Writes the new rows, of a ring only the last that fit. */
  private write(
    cached: CachedRows,
    rows: Rows,
    key: string,
    rowOf: (sequence: number, position: number) => number,
    most = Number.POSITIVE_INFINITY,
  ): void {
    const { batch, scope } = this;
    const kept = batch.counts.flatMap((count, s) => {
      const first = Math.max(0, count - most);
      return range(count - first).map((i) => [s, first + i] as const);
    });
    const to = batch.indices(`${key} to`, () =>
      kept.map(([s, i]) => rowOf(s, (batch.pasts[s] ?? 0) + i)),
    );
    const isAll = kept.length === batch.tokens.length;
    const news = isAll
      ? rows
      : this.gather(
          rows,
          batch.indices(`${key} from`, () =>
            kept.map(([s, i]) => (batch.starts[s] ?? 0) + i),
          ),
        );
    scope.runMany(scatterRows, writesOf(cached.tensors, news, to));
  }

  /** The same rows of several tensors. */
  private gather<R extends Rows>(tensors: R, rows: Tensor): R {
    return mapRows(tensors, (list) => {
      const calls = list.map((x) => ({ inputs: { x, rows }, attributes: {} }));
      return this.scope.runMany(gatherRows, calls).map(({ y }) => y);
    });
  }
}

/** What writes tensors to rows of those of the same names. */
function writesOf(targets: Rows, tensors: Rows, rows: Tensor) {
  return Object.entries(targets).flatMap(([name, target]) => {
    const x = tensors[name];
    return x ? [{ inputs: { target, x, rows }, attributes: {} }] : [];
  });
}

function mapRows<R extends Rows>(
  rows: R,
  change: (tensors: readonly Tensor[]) => readonly Tensor[],
): R {
  const changed = change(Object.values(rows));
  return Object.fromEntries(
    Object.keys(rows).map((name, i) => [name, changed[i]]),
  ) as R;
}

function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}

function bytesOf(tensors: readonly Tensor[]): number {
  return tensors.reduce(
    (sum, { shape, dtype }) => sum + sizeOf(shape) * bytesPerElement[dtype],
    0,
  );
}
