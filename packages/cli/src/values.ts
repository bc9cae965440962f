import { InvalidArgumentError } from '@commander-js/extra-typings';

/** Limits of a number: `min` and `max` are included, `above` is not. */
export interface Range {
  readonly min?: number;
  readonly above?: number;
  readonly max?: number;
}

/** Parses a whole number such as `12` or `1e6`. */
export function integer(range: Range = {}): (text: string) => number {
  return (text) => {
    const value = parse(text);
    if (!Number.isSafeInteger(value) || !isWithin(value, range)) {
      throw refuse('a whole number', range);
    }
    return value;
  };
}

/** Parses a finite number such as `0.7`. */
export function real(range: Range = {}): (text: string) => number {
  return (text) => {
    const value = parse(text);
    if (!Number.isFinite(value) || !isWithin(value, range)) {
      throw refuse('a number', range);
    }
    return value;
  };
}

const units: Readonly<Record<string, number>> = {
  '': 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  KIB: 2 ** 10,
  MIB: 2 ** 20,
  GIB: 2 ** 30,
};

/** Parses a size in bytes such as `500MB` or `2GiB`. */
export function byteCount(text: string): number {
  const [, digits, unit] = /^([0-9.e]+) ?([a-z]*)$/i.exec(text) ?? [];
  const value = parse(digits ?? '') * (units[unit?.toUpperCase() ?? ''] ?? 0);
  if (Number.isFinite(value) && value >= 1) return Math.floor(value);
  throw new InvalidArgumentError('It must be a size such as 500MB or 2GiB.');
}

/** Parses a list such as `f32,f16`, each part by `one`. */
export function list<T>(one: (text: string) => T): (text: string) => T[] {
  return (text) => text.split(',').map((part) => one(part.trim()));
}

/** Parses a number of tokens such as `512`, `8k` (8,192) or `1e5`. */
export function tokenCount(text: string): number {
  const [, digits = text, unit] = /^(.*[0-9])(k?)$/i.exec(text) ?? [];
  const value = parse(digits) * (unit ? 1024 : 1);
  if (Number.isSafeInteger(value) && value >= 1) return value;
  throw new InvalidArgumentError(
    'It must be a number of tokens such as 512 or 8k.',
  );
}

/** Parses one of some words. */
export function oneOf<T extends string>(
  words: readonly T[],
): (text: string) => T {
  return (text) => {
    const word = words.find((each) => each === text);
    if (word !== undefined) return word;
    throw new InvalidArgumentError(`It must be one of ${words.join(', ')}.`);
  };
}

/** Collects the texts of an option that may be given several times. */
export function collect(
  value: string,
  before: readonly string[] = [],
): string[] {
  if (value === '') throw new InvalidArgumentError('It must not be empty.');
  return [...before, value];
}

/** `Number('')` is 0, which nobody means. */
function parse(text: string): number {
  return text.trim() === '' ? Number.NaN : Number(text);
}

function isWithin(value: number, { min, above, max }: Range): boolean {
  return (
    value >= (min ?? value) &&
    value > (above ?? Number.NEGATIVE_INFINITY) &&
    value <= (max ?? value)
  );
}

function refuse(
  kind: string,
  { min, above, max }: Range,
): InvalidArgumentError {
  const limits = [
    min === undefined ? [] : [`at least ${min}`],
    above === undefined ? [] : [`above ${above}`],
    max === undefined ? [] : [`at most ${max}`],
  ].flat();
  const rule = limits.length > 0 ? `${kind}, ${limits.join(' and ')}` : kind;
  return new InvalidArgumentError(`It must be ${rule}.`);
}
