import { TextDecoder } from 'node:util';
import { UsageError } from './exit';

/** Far more text than any context holds. */
const MAX_BYTES = 64 * 2 ** 20;

/**
 * All of standard input as text.
 * @throws UsageError where it is no text, or too much.
 */
export async function readInput(): Promise<string> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of process.stdin as AsyncIterable<Buffer>) {
    bytes += piece.length;
    if (bytes > MAX_BYTES) {
      throw new UsageError('standard input: at most 64 MiB of text');
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
