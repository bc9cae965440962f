import { createRequire } from 'node:module';
import { Worker } from 'node:worker_threads';
import { ConfigError } from '../errors';
import type { TemplateRunner } from '../text/chat-template';

/** Limits of a {@link WorkerTemplateRunner}. */
export interface WorkerTemplateRunnerOptions {
  /** Milliseconds from the thread's start to the text. Default 2,000. */
  readonly deadline?: number;
  /** The longest text, in UTF-16 units. Default 16 Mi. */
  readonly maxLength?: number;
}

/** What the thread answers: the text, or the rule that the template broke. */
type Answer = { readonly text: string } | { readonly rule: string };

/** Heap of the thread, MiB: room for `maxLength` and for Jinja itself. */
const MAX_HEAP = 256;

// A string, because a bundler would move a file away from under its path. It
// runs as CommonJS, whatever this module was built as.
const THREAD = `
const { parentPort, workerData } = require('node:worker_threads');
const { jinja, template, variables, maxLength } = workerData;
function answer() {
  try {
    const { Template } = require(jinja);
    const text = new Template(template).render(variables);
    return text.length > maxLength
      ? { rule: 'the text must have at most ' + maxLength + ' characters, got ' + text.length }
      : { text };
  } catch (error) {
    return { rule: 'the template failed, ' + (error?.message ?? error) };
  }
}
parentPort.postMessage(answer());
`;

/** Renders each template in a thread of its own, which ends at a deadline. */
export class WorkerTemplateRunner implements TemplateRunner {
  readonly #deadline: number;
  readonly #maxLength: number;

  constructor(options: WorkerTemplateRunnerOptions = {}) {
    this.#deadline = options.deadline ?? 2_000;
    this.#maxLength = options.maxLength ?? 16 * 1024 * 1024;
  }

  async render(
    template: string,
    variables: Readonly<Record<string, unknown>>,
    path: string,
  ): Promise<string> {
    const worker = new Worker(THREAD, {
      eval: true,
      execArgv: [],
      resourceLimits: { maxOldGenerationSizeMb: MAX_HEAP },
      workerData: {
        jinja: resolveJinja(),
        template,
        variables,
        maxLength: this.#maxLength,
      },
    });
    const answer = await this.#answer(worker);
    if ('text' in answer) return answer.text;
    throw new ConfigError(path, 'chat_template', answer.rule);
  }

  #answer(worker: Worker): Promise<Answer> {
    let timer: NodeJS.Timeout | undefined;
    const answer = new Promise<Answer>((resolve) => {
      // From `online` on, so that a busy machine's slow start does not count.
      worker.once('online', () => {
        const rule = `the template must be done within ${this.#deadline} ms, it is still running`;
        timer = setTimeout(() => resolve({ rule }), this.#deadline);
      });
      worker.once('message', resolve);
      worker.once('error', ({ message }) =>
        resolve({ rule: `the template failed, ${message}` }),
      );
      worker.once('exit', (code) =>
        resolve({ rule: `the template ended its thread, exit code ${code}` }),
      );
    });
    return answer.finally(() => {
      clearTimeout(timer);
      return worker.terminate();
    });
  }
}

/** The path of Jinja as this module sees it, from ESM and from CommonJS. */
function resolveJinja(): string {
  const here = typeof __filename === 'string' ? __filename : import.meta.url;
  return createRequire(here).resolve('@huggingface/jinja');
}
