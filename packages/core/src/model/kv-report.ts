import { bytesPerElement, type FloatType } from '../dtype';
import { sizeOf } from '../tensor';
import { layerStorage } from './cache-layout';
import { layerAttention, type ModelConfig } from './config';

export interface KvReportOptions {
  /** Tokens of a sequence. */
  readonly tokens: number;
  readonly dtype: FloatType;
  /** Windowed layers keep only their window. */
  readonly ring: boolean;
}

/** Bytes of a sequence's cache, by what they hold. */
export interface KvBytes {
  /** Token rows: keys and values, or latents and rotary keys. */
  readonly tokens: number;
  /** Compressed rows. */
  readonly blocks: number;
  /** Block lists of the last leaders. */
  readonly leaders: number;
  /** Recurrent states. */
  readonly states: number;
  readonly total: number;
}

/**
 * The bytes that a cache for one sequence takes: what `Cache` allocates.
 * Source: maths.md §5.
 */
export function kvBytes(
  config: ModelConfig,
  { tokens, dtype, ring }: KvReportOptions,
): KvBytes {
  const element = bytesPerElement[dtype];
  const stateElement = dtype === 'f64' ? 8 : 4;
  const sum = { tokens: 0, blocks: 0, leaders: 0, states: 0 };
  for (const attention of layerAttention(config)) {
    const storage = layerStorage(attention, { capacity: tokens, ring });
    for (const part of ['tokens', 'blocks'] as const) {
      for (const { rows, widths } of storage[part]) {
        const row = Object.values(widths).reduce((n, w) => n + sizeOf(w), 0);
        sum[part] += rows * row * element;
      }
    }
    sum.leaders += storage.leaders ? sizeOf(storage.leaders) * 4 : 0;
    sum.states += storage.state ? sizeOf(storage.state) * stateElement : 0;
  }
  const total = sum.tokens + sum.blocks + sum.leaders + sum.states;
  return { ...sum, total };
}
