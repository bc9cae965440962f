import { type ModelConfig, preset } from '@asa/core';
import { InvalidArgumentError } from '@commander-js/extra-typings';

/** A preset, and what the user called it. */
export interface NamedPreset {
  readonly name: string;
  readonly config: ModelConfig;
}

/** Parses `--preset`: `tiny`, `340m-nsa`, `1.3b-full`. */
export function parsePreset(name: string): NamedPreset {
  try {
    return { name, config: preset(name) };
  } catch (cause) {
    if (!(cause instanceof Error)) throw cause;
    throw new InvalidArgumentError(cause.message);
  }
}
