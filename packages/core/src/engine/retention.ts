import { layerStorage } from '../model/cache-layout';
import { layerAttention, type ModelConfig } from '../model/config';

/** What keeps a cache from going back to any earlier length. */
export interface RetentionLimits {
  /** Rows of the smallest ring; infinite where nothing is overwritten. */
  readonly ring: number;
  /** A layer keeps one state, which cannot go back. */
  readonly isRecurrent: boolean;
  /** `r` of each layer that inherits block lists. */
  readonly sharing: readonly number[];
}

/** The limits of a model's cache. */
export function retentionLimits(
  config: ModelConfig,
  options: { readonly capacity: number; readonly ring: boolean },
): RetentionLimits {
  const layers = layerAttention(config);
  const storage = layers.map((layer) => layerStorage(layer, options));
  const rings = storage
    .flatMap(({ tokens }) => tokens.map(({ rows }) => rows))
    .filter((rows) => rows < options.capacity);
  const sharing = layers.flatMap((layer) =>
    'selection' in layer ? [layer.selection.sharing] : [],
  );
  return {
    ring: Math.min(Number.POSITIVE_INFINITY, ...rings),
    isRecurrent: storage.some(({ state }) => state !== undefined),
    sharing: [...new Set(sharing)],
  };
}

/**
 * How many tokens a slot of a cache stands behind, and to which lengths it can
 * go back without running tokens again.
 */
export class Retention {
  /** Tokens whose rows, lists and states the slot holds. */
  private held = 0;
  /** One past the last position that may have been written. */
  private written = 0;
  /** The slot holds the lists of this position's leader. */
  private listed: number | undefined;

  constructor(readonly limits: RetentionLimits) {}

  get length(): number {
    return this.held;
  }

  /** The next `count` tokens are about to be written. */
  begin(count: number): void {
    this.written = Math.max(this.written, this.held + count);
    this.listed = undefined;
  }

  /** They were. */
  complete(count: number): void {
    this.held += count;
    this.listed = this.held - 1;
  }

  /**
   * Goes back to at most `length` tokens: to `length` itself, else to where
   * every layer chooses anew, else to the start. Also what a write that failed
   * needs.
   */
  rewind(length: number): void {
    const wanted = Math.min(length, this.held);
    const period = this.limits.sharing.reduce(leastCommonMultiple, 1);
    const lengths = [wanted, wanted - (wanted % period)];
    this.held = lengths.find((candidate) => this.canStandAt(candidate)) ?? 0;
    if (this.held === 0) {
      this.written = 0;
      this.listed = undefined;
    }
  }

  copy(): Retention {
    const copy = new Retention(this.limits);
    copy.held = this.held;
    copy.written = this.written;
    copy.listed = this.listed;
    return copy;
  }

  private canStandAt(length: number): boolean {
    const { ring, isRecurrent, sharing } = this.limits;
    if (isRecurrent && length !== this.written) return false;
    // A query sees w - 1 rows before its own, so a full ring can lose one.
    if (this.written > ring && length < this.written - 1) return false;
    return sharing.every((r) => length % r === 0 || this.hasLists(length, r));
  }

  /** The kept lists are those that position `length` inherits. */
  private hasLists(length: number, r: number): boolean {
    const { listed } = this;
    if (listed === undefined) return false;
    return Math.floor(length / r) === Math.floor(listed / r);
  }
}

function leastCommonMultiple(a: number, b: number): number {
  let multiple = a;
  while (multiple % b !== 0) multiple += a;
  return multiple;
}
