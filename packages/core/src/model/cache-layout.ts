import { blockCount } from '../sequences';
import type { Shape } from '../tensor';
import type { AttentionConfig } from './config';

/** Rows of one part of a layer's cache; extents of one row by tensor name. */
export interface StoredRows {
  readonly part: string;
  /** Rows a sequence. */
  readonly rows: number;
  readonly widths: Readonly<Record<string, Shape>>;
}

/** What a layer keeps of one sequence. */
export interface LayerStorage {
  readonly tokens: readonly StoredRows[];
  readonly blocks: readonly StoredRows[];
  /** `[G, n]` */
  readonly leaders?: Shape;
  /** `[H, Dk, Dv]` */
  readonly state?: Shape;
}

/**
 * The rows that a layer keeps for a sequence of `capacity` tokens. The one
 * place that knows: caches allocate from it, reports count it.
 * Source: maths.md §5.
 */
export function layerStorage(
  attention: AttentionConfig,
  { capacity, ring }: { readonly capacity: number; readonly ring: boolean },
): LayerStorage {
  const windowed = (window: number | undefined) =>
    ring && window !== undefined ? Math.min(capacity, window) : capacity;
  switch (attention.kind) {
    case 'gqa': {
      const { keyValueHeads, headWidth, window } = attention;
      const row: Shape = [keyValueHeads, headWidth];
      return {
        tokens: [
          { part: 'kv', rows: windowed(window), widths: { k: row, v: row } },
        ],
        blocks: [],
      };
    }
    case 'mla': {
      const { latentWidth, ropeWidth, window } = attention;
      return {
        tokens: [
          {
            part: 'latent',
            rows: windowed(window),
            widths: { c: [1, latentWidth], kR: [1, ropeWidth] },
          },
        ],
        blocks: [],
      };
    }
    case 'gla': {
      const { groups, latentWidth, ropeWidth, compression } = attention;
      const c: Shape = [groups, latentWidth];
      const kR: Shape = [1, ropeWidth];
      return {
        tokens: [{ part: 'latent', rows: capacity, widths: { c, kR } }],
        blocks: [
          {
            part: 'compressed',
            rows: blockCount(capacity, compression),
            widths: compression.rope === 'none' ? { c } : { c, kR },
          },
        ],
        leaders: [groups, attention.selection.count],
      };
    }
    case 'nsa': {
      const { keyValueHeads, headWidth, valueWidth, compression } = attention;
      const widths = {
        k: [keyValueHeads, headWidth],
        v: [keyValueHeads, valueWidth],
      };
      const rows = (part: string, count: number) => ({
        part,
        rows: count,
        widths,
      });
      return {
        tokens:
          attention.keyValues === 'shared'
            ? [rows('kv', capacity)]
            : [
                rows('compressed', Math.min(capacity, compression.length)),
                rows('selected', capacity),
                rows('window', windowed(attention.window)),
              ],
        blocks: [rows('blocks', blockCount(capacity, compression))],
        leaders: [keyValueHeads, attention.selection.count],
      };
    }
    case 'linear': {
      const { heads, keyWidth, valueWidth } = attention;
      return { tokens: [], blocks: [], state: [heads, keyWidth, valueWidth] };
    }
  }
}
