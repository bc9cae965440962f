import type { Tokenizer } from '@asa/core';
import { UsageError } from './exit';

/** The most bytes of text that `tokens` tokens can stand for. */
export function textLimit(tokenizer: Tokenizer, tokens: number): number {
  let longest = 1;
  for (let id = 0; id < tokenizer.vocabularySize; id++) {
    longest = Math.max(longest, tokenizer.tokenBytes(id).length);
  }
  return tokens * longest;
}

/**
 * All of standard input as text.
 * @param most bytes of it that can be of use; one more is refused at once.
 * @throws UsageError where it is no text, or too much.
 */
export async function readInput(most: number): Promise<string> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of process.stdin as AsyncIterable<Buffer>) {
    bytes += piece.length;
    if (bytes > most) {
      throw new UsageError(
        `standard input: more text than the context holds, over ${most} bytes`,
      );
    }
    pieces.push(piece);
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(
      Buffer.concat(pieces),
    );
  } catch (cause) {
    throw new UsageError('standard input: must be UTF-8 text', { cause });
  }
}
