/** What a needle's value is made of. */
export type NeedleKind = 'number' | 'uuid';

/** A fact that is hidden in a text, to be asked for behind it. */
export interface Needle {
  readonly kind: NeedleKind;
  /** Two words, `adjective-noun`. */
  readonly key: string;
  /** Seven digits, or a UUID. */
  readonly value: string;
}

/** The line whose repetition is the haystack of the first task. */
export const noise =
  'The grass is green. The sky is blue. The sun is yellow. ' +
  'Here we go. There and back again.';

/** What stands before the haystack. */
export const introduction = (kind: NeedleKind): string =>
  `A special magic ${kind} is hidden within the following text. ` +
  `Make sure to memorize it. I will quiz you about the ${kind} afterwards.`;

export const needleSentence = ({ kind, key, value }: Needle): string =>
  `One of the special magic ${kind}s for ${key} is: ${value}.`;

/** What stands behind the haystack, up to the answer. */
export const question = ({ kind, key }: Omit<Needle, 'value'>): string =>
  `What is the special magic ${kind} for ${key} mentioned in the provided ` +
  `text? The special magic ${kind} for ${key} mentioned in the provided text is`;
